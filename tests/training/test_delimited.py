"""Delimited text: what its encoding, line ends and delimiter are, and how far a damaged row reaches."""

from itertools import chain
from pathlib import Path

import pytest

from fathom.errors import ConfigError, DataError
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import Dataset
from fathom.training.tables.delimited import Dialect, check_delimiter, rows, sniff

HEADER = "user_id,item_id,rating,title\n"
LINES = [f"u{n % 9},i{n % 13},{n % 5 + 1},title {n}\n" for n in range(2000)]


def file(tmp_path: Path, text: str | bytes, name: str = "clicks.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def prepared(path: Path, **options: object) -> Dataset:
    return prepare(str(path), path.parent / "out", options=PrepareOptions(repeats="keep", **options))  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        prepared(path, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(f"{path}: ")) < 230
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "bad"),
    [
        ({5: '7,A,5,"unclosed\n'}, 1),
        ({5: '7,A,5,"unclosed\n', 900: '7,A,5,"unclosed\n'}, 2),
        ({5: '7,A,5,"unclosed\n', 900: '7,A,5,a TV of 55"\n'}, 1),  # both ends of a quoted field, by chance
        ({5: '7,A,5,"unclosed\n', 6: '7,A,5,a TV of 55"\n'}, 1),
        ({5: '7,A,5,"unclosed\n', 900: '7,A,5,"quoted, well"\n'}, 1),
        ({5: '7,A,5,"Weird Al" Yankovic\n'}, 1),
        ({5: '"7,A,5,unclosed\n', 6: '7",A,5,a\n'}, 1),
        ({5: '7,"A,5,unclosed\n', 900: '7,A,5,a TV of 55"\n'}, 1),
        ({5: '7,A,5,"two\nlines, and ""more"""\n', 6: '7,A,5,a TV of 55"\n'}, 0),
    ],
)
def test_a_stray_quote_costs_its_own_line(tmp_path: Path, changed: dict[int, str], bad: int) -> None:
    text = HEADER + "".join(changed.get(number, line) for number, line in enumerate(LINES))
    report = prepared(file(tmp_path, text)).meta["interactions"]
    assert report["rows"] == 2000
    assert report["malformed"] == {"rows": bad} | ({"a stray quote": bad} if bad else {})


def test_damaged_lines_between_two_stray_quotes_hide_no_rows(tmp_path: Path) -> None:
    changed = {5: '7,A,5,"unclosed\n', 300: "7,A\n", 700: "7,A,soon,b\n", 900: '7,A,5,a TV of 55"\n'}
    text = HEADER + "".join(changed.get(number, line) for number, line in enumerate(LINES))
    report = prepared(file(tmp_path, text), max_malformed=1).meta["interactions"]
    assert report["rows"] == 2000
    assert report["malformed"]["rows"] == 3


@pytest.mark.parametrize("close", ['v,a TV of 55",x\n', 'v,a TV of 55",x,y\n'])
def test_damaged_lines_between_two_stray_quotes_hide_no_rows_of_text(tmp_path: Path, close: str) -> None:
    lines = [f"u,title {n},i{n}\n" for n in range(20)]
    lines[3], lines[6], lines[9] = 'v,"unclosed,i\n', "v,short\n", close
    report = prepared(file(tmp_path, "user,title,item\n" + "".join(lines)), max_malformed=1).meta["interactions"]
    assert report["rows"] == 20
    assert report["malformed"]["rows"] <= 3


def test_an_id_with_a_line_end_swallows_no_row(tmp_path: Path) -> None:
    stray = prepared(file(tmp_path, 'user,item\nu,a\nu,"b\nv,c"\nv,d\n'), max_malformed=1).meta["interactions"]
    assert stray["rows"] == 4
    assert stray["malformed"] == {"rows": 1, "a stray quote": 1}
    assert prepared(file(tmp_path, 'user,item\nu,"b\nc"\n')).item_ids == ("b\nc",)


def test_an_open_quote_in_a_large_file_costs_one_line_whatever_the_blocks(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + 'u,i,5,"unclosed\n' + "".join(LINES) * 10)
    found = list(chain.from_iterable(rows(path, None, Dialect(), 4, True, 1000)))
    assert [number for number, _, problem in found if problem] == [2]
    assert [number for number, _, _ in found] == [*range(2, 20_003)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_and_all_line_ends_need_no_option(tmp_path: Path, encoding: str, ends: str) -> None:
    text = (HEADER + "ü,i,1,ä\nu,i,2,é\n").replace("\n", ends)
    assert prepared(file(tmp_path, text.encode(encoding))).user_ids == ("u", "ü")


def test_other_encodings_go_by_option_and_the_message_says_so(tmp_path: Path) -> None:
    path = file(tmp_path, (HEADER + "ü,i,1,ä\n").encode("latin-1"))
    assert prepared(path, encoding="latin-1").user_ids == ("ü",)
    assert "not utf-8: �,i,1,�; give the --encoding, such as latin-1" in refused(path)
    assert "give its --encoding, such as utf-16-le" in refused(file(tmp_path, HEADER.encode("utf-16-le")))
    assert "give its --encoding, such as latin-1" in refused(file(tmp_path, "usér_id,item_id\n".encode("latin-1")))
    for wrong in ("klingon", "base64", "a\0b"):
        assert "unknown encoding" in refused(path, encoding=wrong)


def test_a_nul_byte_and_a_header_in_the_middle_are_counted(tmp_path: Path) -> None:
    report = prepared(file(tmp_path, HEADER + LINES[0] + HEADER + LINES[1] + "\0" * 9), max_malformed=0.5).meta
    assert report["interactions"]["malformed"] == {"rows": 2, "a NUL byte": 1, "the header again": 1}
    assert report["counts"]["events"] == 2


@pytest.mark.parametrize(("delimiter", "name"), [("\t", "tabs"), (";", "semicolons"), ("|", "vertical bars")])
def test_the_delimiter_is_found_and_said(tmp_path: Path, delimiter: str, name: str) -> None:
    data = prepared(file(tmp_path, (HEADER + "".join(LINES)).replace(",", delimiter), "clicks.tsv"))
    assert data.meta["interactions"]["malformed"]["rows"] == 0
    assert f"clicks.tsv: fields are separated by {name} (--delimiter)" in data.meta["notes"]


def test_delimiters_in_the_values_do_not_mislead() -> None:
    lines = ["user_id;item_id;note\n", "1;2;a, b, c\n", "1;3;d, e, f\n"]
    assert sniff(lines, lambda names: "user_id" in names) == ";"
    assert sniff(["a,b;c|d\n", "1,2\n"], lambda _: False) == ","


@pytest.mark.parametrize(("given", "meant"), [("\\t", "\t"), ("tab", "\t"), ("::", "::"), (";", ";")])
def test_a_delimiter_may_be_spelled(tmp_path: Path, given: str, meant: str) -> None:
    assert check_delimiter(given) == meant
    data = prepared(file(tmp_path, (HEADER + LINES[0]).replace(",", meant)), delimiter=given)
    assert data.item_ids == ("i0",)


@pytest.mark.parametrize("wrong", ["", '"', "\n", "\r", "a\0"])
def test_an_impossible_delimiter_is_one_line(wrong: str) -> None:
    with pytest.raises(ConfigError, match="a delimiter must have a character or more"):
        PrepareOptions(delimiter=wrong)


def test_empty_files_headerless_files_and_wrong_names_say_what_would_work(tmp_path: Path) -> None:
    assert refused(file(tmp_path, "")).endswith("the file is empty")
    assert refused(file(tmp_path, "\n \n")).endswith("the file is empty")
    assert refused(file(tmp_path, HEADER)).endswith("no rows")
    bare = file(tmp_path, "196,242,881250949\n186,302,891717742\n")
    assert "no header, but data ('196,242,881250949'); name the columns, as in --columns user_id" in refused(bare)
    data = prepared(bare, columns=("user_id", "item_id", "timestamp"))
    assert data.user_ids == ("186", "196")
    assert data.meta["has_time"]
    assert "--columns names 2 columns, but its first line has 3" in refused(bare, columns=("user_id", "item_id"))
    headed = file(tmp_path, HEADER + LINES[0])
    assert "leave out --columns" in refused(headed, columns=("user_id", "item_id", "rating", "title"))
    assert "or, if that line is data, all columns with --columns" in refused(file(tmp_path, "u,i\nv,j\n"))
    wide = file(tmp_path, ",".join(f"column{n}" for n in range(3000)) + "\n")
    assert "names no column for users or items" in refused(wide)
    assert "... (3000 in all)" in refused(wide, user_column="who", item_column="what")
