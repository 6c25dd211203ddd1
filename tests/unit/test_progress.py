"""The line that says where a run is."""

from moram_dist.train import progress as module
from moram_dist.train.progress import Progress


def test_long_steps_show_without_a_log(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress(enabled=True)
    progress.begin("task 1/2 A", total=4)
    now[0] += 4
    progress.step(tokens=400)
    assert capsys.readouterr().out == ""
    now[0] += 8
    progress.step(tokens=800)
    assert capsys.readouterr().out == "task 1/2 A  step 2/4  100 tokens/s  0:12 left\n"


def test_log_shows_the_loss_and_gives_the_rate(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress(enabled=True)
    progress.begin("task 1/1 A", total=1)
    now[0] += 2
    progress.step(tokens=100)
    assert progress.log(0.5) == 50.0
    assert "step 1/1  loss 0.5000  50 tokens/s  0:00 left" in capsys.readouterr().out


def test_other_ranks_are_silent(capsys):
    progress = Progress(enabled=False)
    progress.begin("task 1/1 A", total=1)
    progress.step(tokens=1)
    progress.log(1.0)
    progress.say("anything")
    assert capsys.readouterr().out == ""
