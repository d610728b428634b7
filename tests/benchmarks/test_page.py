from tests.benchmarks.buffer import Row
from tests.benchmarks.figures import Machine, Pass, Section
from tests.benchmarks.page import TITLES, page
from tests.benchmarks.picture import picture
from tests.benchmarks.test_figures import run, update

PHASES = {"rollout": 4.0, "train": 12.0}
SECTION = Section(
    machine=Machine(cores=2, cpu="Abacus", day="2026-11-28"),
    runs={
        "synchronous": [
            run(update(16.0, phases=PHASES), stored_bytes=500.0, publish_s={"learner waits": 0.25}),
            run(update(16.0, phases=PHASES), stored_bytes=500.0, publish_s={"learner waits": 0.25}),
        ],
        "asynchronous": [run(update(8.0, phases=PHASES), publish_s={"learner waits": 0.5})],
        "padded rows": [run(update(32.0, phases=PHASES))],
        "TRL": [run(update(32.0, phases=PHASES, stolen=0.125))],
    },
    ceilings={
        "engine": [Pass(seconds=4.0, cpu_s=3.0, episodes=64)],
        "step": [Pass(seconds=8.0, cpu_s=1.5, episodes=64)],
    },
)
LEARNER = Section(machine=SECTION.machine, learner={"short": {"padded": 4.0, "tree": 6.0}})


BUFFER = Section(machine=SECTION.machine, buffer=[Row("short", 3000, 400, raw=0.001, buffer=0.004, wire=0.002)])


def test_the_page_tells_ratios_shares_and_ceilings() -> None:
    text = page({"short": SECTION, "learner": LEARNER, "buffer": BUFFER}, "| way | MFU |")
    assert "| Short prompts | 2.00 | 4.00 | 2.00 | 2.00 |" in text
    assert "| synchronous | 4.00 | 1.00 | 40 | 800 | 0.094 | 1.0 GiB | 25 s |" in text
    assert "| asynchronous | 8.00 | 2.00 |" in text
    prose = " ".join(text.split())
    assert "gave to others: synchronous 0.0%, asynchronous 0.0%, padded rows 0.0%, TRL 12.5%." in prose
    assert "500 bytes in the buffer, 2.5 a token" in prose
    # 16 episodes a second alone, a step takes 8: one after the other 5.33
    assert "| synchronous | 50% | 75% |" in text
    assert "| asynchronous | 100% | 150% |" in text
    assert "75% of a synchronous run's CPU seconds" in prose  # (3 + 1.5) / 6 CPU seconds
    assert "| Short prompts | synchronous | 25.0% | 75.0% |" in text
    assert "| Short prompts, asynchronous | 500 |" in text
    assert "| short | 4.00 episodes per CPU s | 6.00 | 1.50 |" in text
    assert "| short | 3,000 | 7.5 | 4.00 | 2.00 | 1.00 | 0.25 |" in text
    assert "(2 cores, Abacus, 2026-11-28)" in text
    assert "| way | MFU |" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_what_was_not_measured_says_so() -> None:
    assert page({}).count("Not measured yet") == len(TITLES) + 3  # weights, the learner's step, the buffer
    assert "no GPU was lent" in page({})
    without_peer = Section(machine=SECTION.machine, runs={"synchronous": SECTION.runs["synchronous"]})
    text = page({"slow": without_peer})
    assert "make bench-trl" in text
    assert "| Short prompts, 200 ms a step of the game |  |  |  |  |" in text


def test_a_panel_of_the_picture_has_a_bar_for_every_way() -> None:
    drawn = picture({"short": SECTION, "learner": LEARNER})
    assert [drawn.count(f">{way}<") for way in SECTION.runs] == [1, 1, 1, 1]
    assert ">learner<" not in drawn
