import errno
import os
import pickle
import threading

import fsspec
import pytest

from moaa_ray.data.local_store import Disk, LocalStore
from moaa_ray.data.object_store import ObjectStore
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError, StageError
from tests.data.faulty_store import KINDS, World, store_on

BAD_PATHS = ["", "/etc/passwd", "a/../b", "..", "../x", "a//b", "a/", "./a", "a/./b", "a\\b", "a\0b"]


@pytest.fixture(params=["folder", *KINDS])
def store(request, tmp_path):
    return open_store(str(tmp_path / "run")) if request.param == "folder" else store_on(request.param, World())


def test_what_is_put_can_be_read_and_put_again(store):
    store.put("work/a.json", b"1")
    store.put("work/a.json", b"22")
    assert store.read("work/a.json") == b"22"
    with store.open("work/a.json") as file:
        assert file.read(1) == b"2"


def test_put_if_absent_makes_a_file_once(store):
    assert store.put_if_absent("work/a.json", b"first")
    assert not store.put_if_absent("work/a.json", b"second")
    assert store.read("work/a.json") == b"first"


def test_list_gives_every_file_below_a_folder_sorted_and_nothing_else(store):
    for path in ("work/b/2", "work/b/1", "work/bb/3", "sft/0"):
        store.put(path, b"")
    assert store.list("work/b") == ["work/b/1", "work/b/2"]
    assert store.list() == ["sft/0", "work/b/1", "work/b/2", "work/bb/3"]
    assert store.list("nothing") == []


def test_deleting_can_be_repeated(store):
    store.put("a/b/c", b"")
    store.put("a/d", b"")
    store.delete("a/d")
    store.delete("a/d")
    assert not store.exists("a/d")
    assert store.exists("a/b/c")
    store.delete_folder("a")
    store.delete_folder("a")
    assert store.list() == []


def test_a_folder_is_not_a_file(store):
    store.put("a/b", b"")
    assert not store.exists("a")


def test_reading_what_is_not_there_says_so(store):
    with pytest.raises(FileNotFoundError):
        store.read("a")


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_could_leave_the_root_are_refused(store, path):
    for call in (store.read, store.exists, store.delete, lambda p: store.put(p, b""), store.open):
        with pytest.raises(ValueError, match="not a relative path"):
            call(path)


def test_swap_replaces_only_what_the_caller_saw():
    store = store_on("object", World())
    assert store.swap("m", b"1", old=None)
    assert not store.swap("m", b"2", old=None)
    assert not store.swap("m", b"2", old=b"0")
    assert store.swap("m", b"2", old=b"1")
    assert not store.swap("gone", b"2", old=b"1")
    assert store.read("m") == b"2"


def test_renaming_a_folder_needs_the_folder_and_a_free_name(tmp_path):
    store = open_store(str(tmp_path))
    store.put("a/x", b"1")
    store.put("b/x", b"2")
    with pytest.raises(FileNotFoundError):
        store.rename_folder("nothing", "c")
    with pytest.raises(FileNotFoundError):
        store.rename_folder("a", "nowhere/c")
    with pytest.raises(StageError, match="not empty"):
        store.rename_folder("a", "b")
    store.rename_folder("a", "c")
    assert store.list() == ["b/x", "c/x"]


def test_of_eight_threads_that_create_one_local_file_one_wins(tmp_path):
    for trial in range(20):
        assert _winners(lambda: open_store(str(tmp_path)), f"work/epochs/{trial}.json") == 1


def test_temporary_files_left_by_a_kill_are_never_listed(tmp_path):
    store = open_store(str(tmp_path))
    store.put("work/a", b"1")
    (tmp_path / "work" / ".tmp-1-2").write_bytes(b"torn")
    assert store.list() == ["work/a"]


class FailingDisk(Disk):
    """A real disk whose writes fail half-way."""

    def __init__(self, code: int) -> None:
        self._code = code

    def write(self, file, data):
        with open(file, "wb") as out:
            out.write(data[: len(data) // 2])
        raise OSError(self._code, os.strerror(self._code))


def test_a_full_disk_is_told_with_the_path_and_the_way_out_and_leaves_nothing(tmp_path):
    store = LocalStore(str(tmp_path), disk=FailingDisk(errno.ENOSPC))
    with pytest.raises(StageError, match=r"no space left for .*work/a: .* free space and run the same command again"):
        store.put("work/a", b"1234")
    assert os.listdir(tmp_path / "work") == []


def test_another_write_error_names_the_path_too(tmp_path):
    store = LocalStore(str(tmp_path), disk=FailingDisk(errno.EIO))
    with pytest.raises(StageError, match=r"work/a: Input/output error; repair"):
        store.put_if_absent("work/a", b"1234")


def test_a_run_directory_under_a_link_to_nowhere_is_told(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    for folder in ("runs", "runs/a"):
        with pytest.raises(StageError, match=r"runs is a link to nowhere; repair"):
            LocalStore(str(tmp_path / folder)).put("run.json", b"{}")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux has a folder that takes no folders")
def test_a_place_that_takes_no_folders_is_told():
    with pytest.raises(StageError, match=r"^/proc/moaa/run\.json: no folder can be made in /proc; repair"):
        LocalStore("/proc/moaa").put("run.json", b"{}")


def test_a_file_system_without_hard_links_is_refused(tmp_path):
    class NoLinks(Disk):
        def link(self, src, dst):
            raise OSError(errno.EPERM, "no links")

    with pytest.raises(ConfigError, match="without hard links"):
        LocalStore(str(tmp_path), disk=NoLinks()).put_if_absent("a", b"")
    assert os.listdir(tmp_path) == []


def test_a_backend_that_cannot_create_exclusively_is_refused(tmp_path):
    import fsspec

    with pytest.raises(ConfigError, match="cannot create a file only if it is absent"):
        ObjectStore(fsspec.filesystem("file"), str(tmp_path), uri="file-like://x")
    with pytest.raises(ConfigError, match="cannot open nonsense://x"):
        open_store("nonsense://x")


def test_a_local_store_opens_by_path_and_uri_and_travels_by_pickle(tmp_path):
    open_store(f"file://{tmp_path}/run").put("a", b"1")
    assert pickle.loads(pickle.dumps(open_store(f"{tmp_path}/run"))).read("a") == b"1"


def test_fsspecs_memory_file_system_is_a_store():
    store = open_store("memory://moaa-store-test/run")
    assert store.put_if_absent("work/a", b"1")
    assert not store.put_if_absent("work/a", b"2")
    assert store.list("work") == ["work/a"]
    store.delete_folder("work")
    assert store.list() == []


def _winners(reopen, path) -> int:
    """How many of 8 threads, each with its own store, made the file; its content must be a winner's."""
    won, barrier = [], threading.Barrier(8)

    def create(number: int) -> None:
        store = reopen()
        barrier.wait()
        if store.put_if_absent(path, str(number).encode()):
            won.append(str(number).encode())

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reopen().read(path) in won
    return len(won)


def one_at_a_time(app):
    """Moto looks whether an object is there and makes it in two steps, where S3 has one."""
    lock = threading.Lock()

    def locked(environ, start_response):
        with lock:
            return list(app(environ, start_response))

    return locked


@pytest.fixture(scope="module")
def s3():
    """(uri, storage options) of an empty bucket on moto's server."""
    from moto.moto_api._internal import moto_api_backend
    from moto.server import ThreadedMotoServer

    moto_api_backend.reset()  # all of moto's servers in one process share their buckets
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    assert server._server is not None
    server._server.app = one_at_a_time(server._server.app)
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.setenv(name, "testing")
        env.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        options = {"client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"}}
        import s3fs

        s3fs.S3FileSystem(**options).mkdir("bucket")
        yield "s3://bucket/run", options
    server.stop()


@pytest.mark.slow
def test_s3_keeps_every_promise_of_a_store(s3):
    store = open_store(*s3)
    test_what_is_put_can_be_read_and_put_again(store)
    store.delete_folder("work")
    test_put_if_absent_makes_a_file_once(store)
    store.delete_folder("work")
    test_list_gives_every_file_below_a_folder_sorted_and_nothing_else(store)
    store.delete_folder("work")
    store.delete_folder("sft")
    test_deleting_can_be_repeated(store)
    test_a_folder_is_not_a_file(store)
    store.delete("a/b")
    test_reading_what_is_not_there_says_so(store)
    assert store.swap("m", b"1", old=None)
    assert not store.swap("m", b"2", old=b"0")
    assert store.swap("m", b"2", old=b"1")
    assert not store.swap("gone", b"2", old=b"1")
    store.delete("m")


@pytest.mark.slow
def test_of_eight_threads_that_create_one_s3_object_one_wins(s3):
    assert [_winners(lambda: open_store(*s3), f"work/race/{trial}.json") for trial in range(10)] == [1] * 10


@pytest.mark.slow
def test_commit_and_publish_work_on_s3(s3):
    from moaa_ray.data import publish
    from tests.data.test_crash_points import IDS, _drive

    store = open_store(*s3)
    first = _drive(store, is_complete=False)
    assert (first.rows, publish.verify(store, "sft")) == (2, [])
    second = _drive(store)
    assert (second.rows, publish.verify(store, "sft")) == (4, [])
    assert next(publish.read_batches(store, "sft", 10))["id"].to_pylist() == list(IDS[:3])
    assert _drive(store) == second


class NoCredentialsError(Exception):
    """As the clients of stores have them: no OSError."""


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.read("run.json"),
        lambda store: store.put("run.json", b"{}"),
        lambda store: store.put_if_absent("run.json", b"{}"),
        lambda store: store.exists("run.json"),
        lambda store: store.list(),
        lambda store: store.delete("run.json"),
    ],
)
def test_what_a_stores_client_raises_by_itself_is_told_with_the_place_and_the_way_out(monkeypatch, ask):
    store = open_store("memory://bucket/run")

    def fail(*args, **kwargs):
        raise NoCredentialsError("Unable to\nlocate credentials")

    for name in ("cat_file", "pipe_file", "isfile", "find", "rm_file"):
        monkeypatch.setattr(type(store._fs), name, fail)
    with pytest.raises(StageError, match=r"^memory://.*: NoCredentialsError: Unable to locate credentials; check"):
        ask(store)


def test_a_scheme_whose_client_fails_at_once_is_refused(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ConfigError, match=r"^cannot open ftp://x/y: .*Name or service not known; install"):
        open_store("ftp://x/y")


def test_a_file_where_a_folder_is_meant_is_no_fault_of_the_storage(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"rows\.parquet is a file; name a folder, such as that of a run"):
        open_store(str(tmp_path / "rows.parquet")).read("run.json")
