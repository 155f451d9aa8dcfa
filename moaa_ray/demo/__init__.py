"""A small world where all of MoAA can be seen to work on two CPU cores: skills, models that know some, a gain."""
