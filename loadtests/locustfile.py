"""Users of every RPC of a server, in a closed loop.

    locust -f loadtests/locustfile.py --host 127.0.0.1:50051                                     # web page on :8089
    locust -f loadtests/locustfile.py --host 127.0.0.1:50051 --headless -u 16 -r 16 -t 30s
    locust -f loadtests/locustfile.py --host 127.0.0.1:50051 --headless --steps 8,16,32,64 RecommendUser

There is a class of users for each RPC; names after the options, or ``--class-picker`` and the web page, choose among
them. Those that write, or that only some servers answer, run where they are asked for: --write-events, --write-items,
--experiments, --reload. ``locust -f loadtests/locustfile.py --help`` lists all options.
Answers are listed by the depth that made them, errors by their status. What is served, and over which transport, is
logged at the start and written into the report of ``--html``.
"""

# Both before grpc is imported: its threads must become greenlets, or one call would stop all users.
from gevent import monkey

monkey.patch_all()
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

import fathom.loadtests.users.hooks  # noqa: F401 - it listens to locust's events
from fathom.loadtests.users.events import AppendEventStreamUser, AppendEventsUser, DeleteUserUser
from fathom.loadtests.users.items import ListItemsUser, RemoveItemsUser, UpsertItemsUser
from fathom.loadtests.users.operating import GetBundleUser, ListExperimentsUser, ReloadUser, ReportOutcomesUser
from fathom.loadtests.users.recommending import RecommendBatchUser, RecommendStreamUser, RecommendUser
from fathom.loadtests.users.shape import StepShape

# Locust takes what it finds here.
__all__ = [
    "AppendEventStreamUser",
    "AppendEventsUser",
    "DeleteUserUser",
    "GetBundleUser",
    "ListExperimentsUser",
    "ListItemsUser",
    "RecommendBatchUser",
    "RecommendStreamUser",
    "RecommendUser",
    "ReloadUser",
    "RemoveItemsUser",
    "ReportOutcomesUser",
    "StepShape",
    "UpsertItemsUser",
]
