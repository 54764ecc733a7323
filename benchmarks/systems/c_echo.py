"""HTTP/2 servers in C that answer every call with one gRPC message: about as little as a transport can cost.

nghttpd (Debian: nghttp2-server) and nginx (nginx-light), where they are installed. They read the call and send a file
and a trailer; nothing decodes the message.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.benchmarks.http2 import message_frame
from fathom.benchmarks.ports import accepts_within, free_port
from fathom.benchmarks.server import METHOD, StartedServer
from fathom.errors import UnavailableError

#: Program -> the Debian package that has it.
PROGRAMS = {"nghttpd": "nghttp2-server", "nginx": "nginx-light"}
#: Where Debian puts servers, which is not on every user's path.
FOLDERS = "/usr/sbin"
LISTENS_S = 5.0
_NGINX = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events {{}}
http {{
    access_log off;
    keepalive_requests 1000000000;
    open_file_cache max=8;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} http2;
        root {root};
        default_type application/grpc;
        add_trailer grpc-status 0;
        # A file is not to be had by POST.
        error_page 405 =200 $uri;
    }}
}}
"""


def program_of(name: str) -> str | None:
    """Where it is installed, None where it is not."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), FOLDERS)))


@contextmanager
def started_c_echo(name: str, answer: bytes) -> Iterator[StartedServer]:
    """One of PROGRAMS, which answers with this message; raises UnavailableError where it does not start."""
    program, port = program_of(name), free_port()
    if program is None:
        raise UnavailableError(f"{name} is not installed: apt install {PROGRAMS[name]}")
    with tempfile.TemporaryDirectory() as folder:
        begin, root = time.perf_counter(), Path(folder) / "root"
        file = root / METHOD.removeprefix("/")
        file.parent.mkdir(parents=True)
        file.write_bytes(message_frame(answer).body)
        command = _command(program, name, port, root)
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
            try:
                if not accepts_within(port, LISTENS_S):
                    raise UnavailableError(f"{name} did not start; its error is above")
                yield StartedServer(f"127.0.0.1:{port}", process.pid, time.perf_counter() - begin)
            finally:
                process.terminate()


def _command(program: str, name: str, port: int, root: Path) -> list[str]:
    if name == "nghttpd":
        address = ["--no-tls", "--address=127.0.0.1", str(port)]
        return [program, f"--htdocs={root}", "--trailer=grpc-status: 0", "--max-concurrent-streams=1000", *address]
    config = root.with_name("nginx.conf")
    config.write_text(_NGINX.format(port=port, root=root))
    return [program, "-e", "stderr", "-p", str(root.parent), "-c", str(config)]
