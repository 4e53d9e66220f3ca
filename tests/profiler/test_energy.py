"""The arithmetic of energy, on recorded traces of a counter and a clock."""

import pytest
from onnx_netadapt.ir.errors import ProfileError, TargetError
from onnx_netadapt.profiler.energy import Counter, EnergyClock, find_meter, idle_watts, measure_energy, rapl


class Machine:
    """A recorded machine: 4 W idle, 10 W while a model runs, 20 ms a run; the counter ticks every millisecond."""

    def __init__(self, turn=0.0, start=0.0):
        self.now, self.joules, self.turn = 0.0, start, turn
        self.runs = 0

    def wait(self, seconds):
        self.now += seconds
        self.joules += 4.0 * seconds

    def run(self):
        self.now += 0.02
        self.joules += 10.0 * 0.02
        self.runs += 1

    def read(self):
        ticked = int(self.joules * 1e3) / 1e3
        return [ticked % self.turn if self.turn else ticked]

    def meter(self):
        return Counter("recorded", self.read, [self.turn])

    def clock(self):
        return EnergyClock(lambda: self.now, self.wait)


def test_the_idle_power_is_taken_off():
    machine = Machine()
    idle = idle_watts(machine.meter(), machine.clock())
    assert idle == pytest.approx(4.0, rel=1e-3)
    found = measure_energy(machine.run, machine.meter(), idle=idle, clock=machine.clock())
    assert found.median_mj == pytest.approx(1e3 * 0.02 * (10 - 4), rel=1e-3)
    assert found.runs == pytest.approx(3 * 50, abs=3)
    assert found.meter == "recorded"


def test_a_counter_that_wraps_around_loses_nothing():
    machine = Machine(turn=15.0, start=6.5)
    found = measure_energy(machine.run, machine.meter(), idle=4.0, clock=machine.clock())
    assert found.least_mj == pytest.approx(120.0, rel=2e-3)
    assert found.most_mj == pytest.approx(120.0, rel=2e-3)


def test_the_median_of_the_loops_counts():
    machine = Machine()
    steady = machine.run

    def disturbed():
        steady()
        if 60 < machine.runs < 80:  # something else drew power in one of the loops
            machine.joules += 1.0

    found = measure_energy(disturbed, machine.meter(), idle=4.0, clock=machine.clock())
    assert found.median_mj == pytest.approx(120.0, rel=1e-3)
    assert found.most_mj > 300


def test_a_run_longer_than_the_loop_is_run_once_in_each():
    machine = Machine()

    def slow():
        machine.now += 3.0
        machine.joules += 30.0

    found = measure_energy(slow, machine.meter(), idle=4.0, clock=machine.clock())
    assert found.median_mj == pytest.approx(18_000)
    assert found.runs == 3


def test_a_meter_that_does_not_see_the_model_is_an_error():
    machine = Machine()
    with pytest.raises(ProfileError, match="does not see"):
        measure_energy(machine.run, machine.meter(), idle=10.0, clock=machine.clock())


def test_rapl_adds_the_packages_and_not_their_parts(tmp_path):
    for name, value in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 900_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("5000000\n")
    meter = rapl(tmp_path)
    meter.begin()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1500000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("250000\n")  # wrapped at 5 J
    assert meter.end() == pytest.approx(0.5 + 3.25)


def test_without_a_meter_the_message_says_what_each_would_need(tmp_path):
    def boards():
        return "NVML: package nvidia-ml-py is not installed"

    with pytest.raises(
        TargetError, match=r"RAPL: no counter.*NVML: package.*--meter package.module:function"
    ) as caught:
        find_meter(gpu=False, tried=(lambda: rapl(tmp_path), boards))
    assert caught.value.exit_code == 4


def test_the_first_meter_that_works_is_taken(tmp_path):
    mine = Machine().meter()
    assert find_meter(gpu=True, tried=(lambda: rapl(tmp_path), lambda: mine)) is mine
