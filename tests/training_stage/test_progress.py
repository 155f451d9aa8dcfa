"""The line that people see."""

from moaa_ray.training_stage.progress import progress_line


def line(step: int, **more) -> dict:
    known = {"num_steps": 100, "epoch": 0.5, "loss": 1.25, "grad_norm": 2.0, "learning_rate": 8e-6, "tokens": 3000}
    return {"step": step, **known, "seconds": 2.0, "save_s": 1.0, "memory_bytes": 3 * 2**30, **more}


def test_time_left_counts_steps_and_saves_and_speed_counts_steps_alone():
    text = progress_line("sft", [line(8), line(9, mfu=0.431)])
    assert text == (
        "sft step 10/100, epoch 0.50, loss 1.2500, lr 8.00e-06, grad norm 2.00, 1,500 tokens/s, MFU 43%, 3.0 GiB, "
        "4m30s left"
    )


def test_pairs_show_accuracy_and_margin_and_the_newest_validation():
    text = progress_line(
        "dpo", [line(3, accuracy=0.5, margin=0.1, validation_loss=0.6931), line(4, accuracy=0.75, margin=0.2)]
    )
    assert "loss 1.2500, accuracy 0.75, margin 0.200" in text
    assert text.endswith("validation loss 0.6931 at step 4")
