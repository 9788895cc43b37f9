"""What holds of every sandbox: commands, files, limits, its end, and what is left of owners that were killed."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.errors import RolloutError, SetupError, UserError, Where
from miles_lite.process import scratch
from miles_lite.sandboxes import SANDBOXES, files, provider
from miles_lite.sandboxes.containers import Container, Containers, running
from miles_lite.sandboxes.files import get, packed, pull, push, put, unpack
from miles_lite.sandboxes.lending import Pool
from miles_lite.sandboxes.local import Folder
from miles_lite.sandboxes.owner import home
from miles_lite.sandboxes.sandbox import ARCHIVE_ENTRIES, Sandbox
from tests.e2e.job import ROOT
from tests.sandboxes.kinds import IMAGE, KINDS, kind_of, needs_bwrap

TRIES = itertools.count()
names = st.text("abc é'\"$`\n-.", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(paths, st.binary(max_size=300), max_size=4).map(
    lambda files: {
        path: data for path, data in files.items() if not any(other.startswith(f"{path}/") for other in files)
    }
)


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with kind_of(request.param) as kind, contextlib.closing(Pool(provider(kind))) as pool, pool.open(IMAGE) as lease:
        yield lease.sandbox


def test_a_command_is_run_where_its_files_are(sandbox: Sandbox) -> None:
    put(sandbox, {"in/here.txt": b"there"})
    outcome = sandbox.run("cat in/here.txt; echo no >&2; exit 3", seconds=20)
    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("there", "no\n", 3)
    sandbox.run("mkdir -p made; echo 1 > made/one; ln -s one made/two", seconds=20)
    assert get(sandbox, "made/one") == b"1\n"
    for missing in ("nothing", "made", "made/one/more"):
        with pytest.raises(FileNotFoundError):
            get(sandbox, missing)


def test_a_command_is_text_and_no_part_of_another(sandbox: Sandbox) -> None:
    said = 'it\'s $HOME `x` \\ "q"; exit 9\n'
    assert sandbox.run(f"cat <<'END'\n{said}END", seconds=20).stdout == said
    assert sandbox.run("printf %s " + "x" * 200_000 + " | wc -c", seconds=20).stdout.strip() == "200000"


def test_time_and_output_are_bounded(sandbox: Sandbox) -> None:
    outcome = sandbox.run("echo begun; sleep 100", seconds=1)
    assert (outcome.exit_code, outcome.stdout) == (124, "begun\n")
    assert "timed out after 1 s" in outcome.stderr
    assert len(sandbox.run("while :; do echo 0123456789; done | head -c 1000000 || :", seconds=30).stdout) < 10_000


@settings(max_examples=5, deadline=None)
@given(files=trees)
def test_files_come_out_as_they_went_in(sandbox: Sandbox, files: dict[str, bytes]) -> None:
    files = {f"{next(TRIES)}/{path}": data for path, data in files.items()}
    put(sandbox, files)
    assert {path: get(sandbox, path) for path in files} == files


def test_a_folder_goes_there_and_back(sandbox: Sandbox, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "sub" / "empty").mkdir(parents=True)
    (there / "sub" / "run.sh").write_text("exit 5\n")
    (there / "sub" / "run.sh").chmod(0o755)
    (there / "link").symlink_to("/etc/passwd")
    back.mkdir()
    push(sandbox, there)
    assert sandbox.run("bash sub/run.sh", seconds=20).exit_code == 5
    pull(sandbox, back, leave=lambda path: path.name == "left")
    assert (back / "sub" / "run.sh").stat().st_mode & 0o111
    assert (back / "sub" / "empty").is_dir()
    assert os.readlink(back / "link") == "/etc/passwd"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_it(kind: str) -> None:
    with kind_of(kind) as made:
        with contextlib.closing(Pool(provider(made))) as pool, pool.open(IMAGE) as lease:
            sandbox = lease.sandbox
            assert sandbox.run("echo 1", seconds=20).stdout == "1\n"
        sandbox.close()  # as often as one likes
        if isinstance(sandbox, Folder):
            assert not sandbox.folder.exists()
        elif isinstance(sandbox, Container):
            assert not running("podman", sandbox.name)
            with pytest.raises(RolloutError, match="is gone"):
                sandbox.run("echo 1", seconds=20)
        else:
            with pytest.raises(RolloutError, match="404"):
                sandbox.run("echo 1", seconds=20)


def test_one_that_was_lost_is_the_environments_failure_and_one_of_that_name_is_taken_over() -> None:
    with kind_of("podman"):
        made = Containers("podman")
        first, again = (made.start("twice", IMAGE, None) for _ in range(2))
        put(first, {"x": b"1"})
        assert get(again, "x") == b"1"
        assert isinstance(first, Container)
        subprocess.run(["podman", "kill", first.name], check=True, capture_output=True)
        for broken in (lambda: again.run("exit 0", seconds=5), lambda: put(again, {"x": b""}), lambda: get(again, "x")):
            with pytest.raises(RolloutError, match=r"gone|could not") as caught:
                broken()
            assert caught.value.where is Where.ENVIRONMENT
        first.close()


OWNER = """
import sys, time
from miles_lite.sandboxes import provider
sandbox = provider(sys.argv[1]).start("left", sys.argv[2], None)
print(getattr(sandbox, "name", None) or sandbox.folder, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "http"])
def test_what_a_killed_owner_left_ends_with_the_next(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home().exists()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where nobody else comes next
    monkeypatch.setattr(tempfile, "tempdir", None)
    with kind_of(kind):
        argv = [sys.executable, "-c", OWNER, kind, IMAGE]
        owner = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert owner.stdout is not None
        made = owner.stdout.readline().strip()
        there = (lambda: running("podman", made)) if kind == "podman" else Path(made).exists
        mine = provider(kind)
        mine.reap()
        assert there()  # its owner lives
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        assert mine.reap() >= 1 or kind == "podman"  # whose next may have been another test
        assert not there()
        assert home().exists()


def test_an_archive_of_a_sandbox_writes_nowhere_else(tmp_path: Path) -> None:
    """Names, links and what is written through links: none of it leaves the folder."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "kept").write_text("kept")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, kind, link in [
            ("../outside/kept", tarfile.REGTYPE, ""),
            (str(outside / "new"), tarfile.REGTYPE, ""),
            ("away", tarfile.SYMTYPE, str(outside)),
            ("away/kept", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "../outside/kept"),
            ("hard", tarfile.REGTYPE, ""),
            ("device", tarfile.CHRTYPE, ""),
            ("fine", tarfile.REGTYPE, ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"!"))

    class Given:
        def pack(self, path: str) -> bytes:
            return data.getvalue()

    pull(Given(), folder)  # type: ignore[arg-type]
    assert [each.name for each in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"
    assert (folder / "fine").read_bytes() == b"!"
    assert not (folder / "device").exists()


def test_a_path_leads_out_of_no_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    sandbox = Folder(tmp_path / "in", None)  # type: ignore[arg-type]
    for path in ("../secret", "up/secret", str(tmp_path / "secret")):
        with pytest.raises(FileNotFoundError):
            sandbox.pack(path)
    with pytest.raises(FileNotFoundError, match="is no file"):
        get(sandbox, "up")
    assert b"secret" not in packed(tmp_path / "in", PurePosixPath("up"))


def test_more_than_an_archive_may_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    with pytest.raises(RolloutError, match="takes more than 1024 MB"):
        packed(tmp_path, PurePosixPath("sparse"))


@pytest.mark.parametrize("path", ["a\0b/c", "a\ud800"])
def test_what_no_file_can_be_called_is_not_there(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file has such a name"):
        get(sandbox, path)
    with pytest.raises(FileNotFoundError, match="no file has such a name"):
        put(sandbox, {path: b""})
    assert sandbox.run("echo '\ud800'", seconds=20).stdout == "?\n"


def test_what_is_not_written_is_said(sandbox: Sandbox) -> None:
    """As through a link that a command has left."""
    sandbox.run("ln -s /proc/sys outside", seconds=20)
    for path in ("../../../beside", "outside/there", "x" * 300):
        with pytest.raises(RolloutError) as caught:
            put(sandbox, {path: b""})
        assert caught.value.where is Where.ENVIRONMENT


def test_an_archive_that_says_to_hold_more_than_it_may_is_refused(tmp_path: Path) -> None:
    """Compressed, or with holes."""
    plain, holes = io.BytesIO(), tarfile.TarInfo("holes")
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    holes.type, holes.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(holes.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]  # its real size
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    for data, why in ((gzip.compress(plain.getvalue()), "cannot be read"), (bytes(header) + bytes(1024), "1024 MB")):

        class Given:
            def pack(self, path: str, data: bytes = data) -> bytes:
                return data

        for read in (lambda: get(Given(), "x"), lambda: pull(Given(), tmp_path), lambda: unpack(data, tmp_path)):  # type: ignore[arg-type]  # noqa: B023
            with pytest.raises(RolloutError, match=why):
                read()
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_more_files_than_it_may_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they are empty, or are of one entry's header."""
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, 600_000
    records = (b"12 a%06d=b\n" % number for number in range(50_000))
    header = extended.tobuf(tarfile.USTAR_FORMAT) + b"".join(records)
    for data, why in (
        (tarfile.TarInfo("a").tobuf() * (ARCHIVE_ENTRIES + 1), "has more than 100,000 files, folders and links"),
        (header + tarfile.TarInfo("a").tobuf(), "has a header of 600,000 bytes; at most 65,536 are read"),
    ):
        with pytest.raises(RolloutError, match=why) as caught:
            unpack(data, tmp_path)
        assert caught.value.where is Where.ENVIRONMENT
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(files, "ARCHIVE_ENTRIES", 9)
    for number in range(9):
        (tmp_path / str(number)).touch()  # and the folder itself is one
    with pytest.raises(RolloutError, match=r"what was asked for, \., has more than 9 files"):
        packed(tmp_path, PurePosixPath("."))


def test_a_folder_that_is_deeper_than_python_goes_is_told_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    script = "for at in $(seq 30); do mkdir -p $(printf 'd/%.0s' {1..50}); cd $(printf 'd/%.0s' {1..50}); done"
    subprocess.run(["bash", "-c", script], cwd=folder, check=True)
    with pytest.raises(RolloutError, match="cannot be read or written"):
        packed(folder, PurePosixPath("."))
    scratch.clear(str(folder))
    assert not folder.exists()


@pytest.mark.parametrize("image", ["", "--volume=/:/host"])
def test_an_image_is_no_option(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("docker", "apptainer"):
        (tmp_path / program).write_text("#!/bin/sh\n[ $1 = ps ] || exit 9\n")
        (tmp_path / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match=f"sandboxes of {program} need an image"):
            provider(program).start("x", image, None)


@pytest.mark.parametrize("workdir", ["here", "/a/../b", "/a\0b", "/\ud800"])
@pytest.mark.parametrize("kind", [pytest.param("bwrap", marks=needs_bwrap), "podman"])
def test_a_folder_that_is_none_of_a_sandbox_is_refused(kind: str, workdir: str) -> None:
    with kind_of(kind), pytest.raises(UserError, match="is no folder of a sandbox"):
        provider(kind).start("x", IMAGE, workdir)


def test_a_python_without_filters_for_archives_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian 12's."""
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(SetupError, match=r"sandboxes need Python 3\.11\.4 or newer"):
        provider("local")


def test_what_is_not_there_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for kind in ("docker", "podman", "apptainer"):
        with pytest.raises(UserError, match=f"sandboxes of {kind}: it is not installed here"):
            provider(kind)
    with pytest.raises(UserError, match=r"no server of sandboxes answers at http://127\.0\.0\.1:9"):
        provider("http://127.0.0.1:9")
    assert set(SANDBOXES) == {"local", "bwrap", "docker", "podman", "apptainer"}


@pytest.mark.parametrize("program", ["docker", "apptainer"])
def test_a_container_is_alone_and_bounded(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is a stand-in that notes how it was called, and runs what it is given on this machine."""
    noted, stand_in = tmp_path / "noted", tmp_path / program
    stand_in.write_text(
        f'#!/bin/bash\nprintf "%q " "$@" >> {noted}; echo >> {noted}\n'
        f"[[ $1 == ps ]] && exit\n[[ $1 == run ]] && exec touch {tmp_path}/runs\n"
        f"[[ $1 == inspect ]] && {{ [[ -e {tmp_path}/runs ]] && echo true; exit; }}\n"
        '[[ $3 == mkdir ]] && exit\nwhile [[ $# -gt 0 && $1 != timeout ]]; do shift; done\nexec "$@"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with contextlib.closing(provider(program).start("one", "an image", "/testbed")) as sandbox:
        assert sandbox.run("printf '%s' 'it'\"'\"'s'", seconds=20).stdout == "it's"
        assert sandbox.run("sleep 30", seconds=1).exit_code == 124
    said = noted.read_text()
    assert "--network none" in said
    assert "an\\ image" in said
    if program == "docker":
        wanted = ["--cap-drop ALL", "--memory 8g", "--pids-limit 512", "exec --interactive --workdir /testbed"]
    else:
        wanted = ["--containall --cleanenv --no-home", ":/testbed --pwd /testbed"]
    assert [each for each in wanted if each not in said] == []


@needs_bwrap
def test_the_pages_example_runs() -> None:
    page = (ROOT / "docs" / "sandboxes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python sandbox\n(.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", example], check=True, timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)})
