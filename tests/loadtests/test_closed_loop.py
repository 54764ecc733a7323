from fathom.loadtests.closed_loop import Told, with_note
from fathom.loadtests.steps import StepResult

REPORT = '<html><body>\n    <div id="root"></div>\n</body></html>'
STEPS = (
    StepResult(8, 9.9, 200.0, 0.0, 200.0, 5, 12),
    StepResult(16, 9.9, 400.0, 1.5, 398.5, 6, 30),
)


def test_a_report_says_that_it_is_of_a_closed_loop_and_what_was_spoken_to() -> None:
    told = Told("127.0.0.1:50051", "ml-100k 0123456789ab", "http2", 50.0, ["RecommendUser", "GetBundleUser"], STEPS)
    text = with_note(REPORT, told)
    assert text.index("Locust is a closed loop") < text.index('<div id="root">')
    assert "thinks for 50 ms on average" in text
    assert "<code>fathom loadtest</code>" in text
    assert "Target 127.0.0.1:50051: bundle ml-100k 0123456789ab, transport http2" in text
    assert "Users: RecommendUser, GetBundleUser." in text
    assert "<td>16</td><td>9.9</td><td>400.0</td><td>1.5</td><td>398.5</td><td>6</td><td>30</td>" in text
    assert [text.count(f"width:{width}%") for width in (50, 100)] == [1, 1]


def test_a_report_gets_one_note_and_anything_else_none() -> None:
    told = Told("127.0.0.1:50051", "", "", 0.0, ["RecommendUser"])
    once = with_note(REPORT, told)
    assert "a bundle that it does not name" in once
    assert "<table>" not in once
    assert with_note(once, told) == once
    assert with_note("<html></html>", told) == "<html></html>"


def test_what_a_server_says_of_itself_is_no_markup() -> None:
    text = with_note(REPORT, Told("127.0.0.1:1", "<script>alert(1)</script>", "http2", 0.0, []))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
