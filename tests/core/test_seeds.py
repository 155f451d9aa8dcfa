from moaa_ray.core.seeds import hex_for, seed_for


def test_a_seed_depends_on_every_part_and_on_where_parts_end():
    seeds = {
        seed_for(0, "p", "row", 0),
        seed_for(1, "p", "row", 0),
        seed_for(0, "q", "row", 0),
        seed_for(0, "p", "row", 1),
        seed_for(0, "pr", "ow", 0),
        seed_for(0, "p", "row", "0"),
    }
    assert len(seeds) == 6


def test_a_seed_is_the_same_in_every_process_and_fits_a_double():
    assert seed_for(7, "aggregate", "row-1", 0) == 7602860172242769
    assert all(0 <= seed_for(0, i) < 2**53 for i in range(200))


def test_text_that_is_not_valid_unicode_still_has_a_seed():
    assert seed_for(0, "\ud800") != seed_for(0, "\ud801")


def test_hex_text_has_the_length_asked_for():
    assert len(hex_for(0, "fence", "row")) == 12
    assert len(hex_for(0, "fence", "row", num_chars=8)) == 8
