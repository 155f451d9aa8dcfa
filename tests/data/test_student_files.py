"""A model folder's files tell it from others, where they are whole."""

import pytest

from moaa_ray.data.student_files import digest_of_model
from moaa_ray.errors import ConfigError


def test_a_link_to_a_file_that_was_left_behind_is_told_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "1234")
    with pytest.raises(ConfigError, match=r"^model .*: model.safetensors: is a link to nothing; copy the model once"):
        digest_of_model(str(tmp_path))
