import traceback

from ray.exceptions import RayTaskError, UserCodeException

from moaa_ray.generation import watching


def test_a_broken_plan_tells_what_went_wrong_first(monkeypatch):
    """As it comes from Ray Data: the causes of an error are lost on the way, but for the text of the traceback."""
    monkeypatch.setattr(watching, "log_folder", lambda: "/tmp/ray/logs")
    try:
        try:
            try:
                raise KeyError("no column 'a'")
            except KeyError as error:
                raise RuntimeError("two\nlines") from error
        except RuntimeError as error:
            raise UserCodeException("UDF failed to process a data block.") from error
    except UserCodeException as error:
        alone = UserCodeException(str(error))
        came = RayTaskError("map", traceback.format_exc(), alone, proctitle="ray::Map", pid=1, ip="127.0.0.1")
    text = str(watching._as_ours(came.as_instanceof_cause()))
    assert text.startswith("the plan broke (RayTaskError(UserCodeException)): KeyError: \"no column 'a'\"\nwhat is")
    assert text.endswith("engines: /tmp/ray/logs")


def test_an_error_without_a_traceback_is_told_from_its_beginning(monkeypatch):
    monkeypatch.setattr(watching, "log_folder", lambda: "")
    text = str(watching._as_ours(ValueError("The actor\n  died" + "x" * 700)))
    assert "(ValueError): The actor diedxxx" in text
    assert len(text) < 900
