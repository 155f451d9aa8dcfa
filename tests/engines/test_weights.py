import fsspec
import pytest

from moaa_ray.data.student_files import student_folder
from moaa_ray.engines import weights
from moaa_ray.engines.base import EngineStartError
from moaa_ray.engines.weights import local_weights
from moaa_ray.errors import ConfigError
from tests.generation.servers import s3_bucket

MODEL = "memory://bucket/m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where copies go, with the memory of this process as a store beside those of the cloud."""
    monkeypatch.setattr(weights, "SCHEMES", (*weights.SCHEMES, "memory://"))
    monkeypatch.setenv("MOAA_WEIGHTS_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


def put(text: str, name: str = "config.json") -> None:
    fsspec.filesystem("memory").pipe(f"/bucket/m/{name}", text.encode())


def read(folder: str, name: str = "config.json") -> str:
    with open(f"{folder}/{name}", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("name", ["org/name", "/local/folder", "relative", "http://host/m"])
def test_what_is_no_cloud_uri_comes_back_as_it_is(name, cache):
    assert local_weights(name) == name
    assert not cache.exists()


def test_a_cloud_uri_is_copied_once_for_each_content(cache):
    put("{}")
    put("weights", "deep/er/model.safetensors")
    folder = local_weights(MODEL)
    assert (read(folder), read(folder, "deep/er/model.safetensors")) == ("{}", "weights")
    (cache / folder / "mine").touch()
    assert local_weights(MODEL) == folder
    assert (cache / folder / "mine").exists()
    put('{"new": 1}')
    assert read(local_weights(MODEL)) == '{"new": 1}'
    assert read(folder) == "{}"


def test_a_copy_that_broke_off_is_made_again(monkeypatch):
    put("{}")
    put("weights", "model.safetensors")
    memory = fsspec.filesystem("memory")

    def broken(path: str, part: str, **_more) -> None:
        memory.get_file("/bucket/m/config.json", f"{part}config.json")
        raise OSError("connection lost")

    with monkeypatch.context() as now:
        now.setattr(type(memory), "get", lambda _self, *args, **more: broken(*args, **more))
        with pytest.raises(OSError, match="connection lost"):
            local_weights(MODEL)
    assert read(local_weights(MODEL), "model.safetensors") == "weights"


def test_weights_that_are_not_there_can_never_be_had_and_the_place_is_named():
    put("{}")
    with pytest.raises(EngineStartError, match=r"^memory://bucket/m/nope: cannot be read .*; correct the address"):
        local_weights(f"{MODEL}/nope")
    with pytest.raises(ConfigError, match=r"^student.model = memory://bucket/m/nope: cannot be read"):
        student_folder(f"{MODEL}/nope")
    with pytest.raises(ConfigError, match=r"^models.mine.model = memory://bucket/m/nope: cannot be read"):
        student_folder(f"{MODEL}/nope", field="models.mine.model")


@pytest.mark.slow
def test_weights_are_had_from_s3_or_it_is_said_what_lacks():
    pytest.importorskip("moto.server", reason="moto serves S3 on this machine")
    import s3fs

    with s3_bucket("bucket"):
        s3fs.S3FileSystem().pipe("bucket/m/config.json", b"{}")
        assert read(local_weights("s3://bucket/m")) == "{}"
        for place in ("s3://bucket/m/nope", "s3://nowhere/m"):
            with pytest.raises(EngineStartError, match=f"^{place}: cannot be read"):
                local_weights(place)
