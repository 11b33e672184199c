"""Who acts: drivers with their workers, whoever mends or reads the store, and the user who starts them all again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raylt.errors import Diverged, EnvironmentFailure, Fenced, InputError, LeaseHeld, RayltError, StoreFailure
from raylt.report.document import results
from raylt.search.confirm import Request
from raylt.store import Lease, Ledger, Output
from raylt.store.damage import Damaged
from raylt.store.lease import guard_for, request_stop
from raylt.store.ledger import existing
from raylt.store.ledger_files import read_lock, require_lock
from raylt.store.repair import repair
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import is_complete, stored_spec, write_spec
from raylt.store.verify import verify
from raylt.sweep.dispatch import Dispatcher, Finished, Wait
from raylt.trial.run import failure
from tests.chaos.simulation.work import Run, measure, yaml_of
from tests.chaos.simulation.world import Event, Host, Killed, Process, Thread

if TYPE_CHECKING:
    from tests.chaos.simulation.simulate import Simulation

STARTUP = 2


class Driver:
    """One `raylt sweep`: as `raylt.sweep` does it, with threads for Ray's workers. `said` is how it left."""

    def __init__(self, simulation: Simulation, host: Host, number: int) -> None:
        self.simulation, self.said, self.is_stopping = simulation, "killed", False
        self.process = simulation.start(host, f"driver {number}", self._main)
        self.inbox: list[tuple[int, Process, dict[str, Any]]] = []
        self.news = Event(simulation.world)
        self.workers: dict[int, Process] = {}

    def _main(self) -> None:
        try:
            self.said = self._drive()
        except Damaged as error:
            self.simulation.damage_was_reported(error)
            self.said = "damaged"
        except (LeaseHeld, Fenced, StoreFailure, EnvironmentFailure) as error:
            self.said = type(error).__name__
            self.simulation.world.say(f"leaves: {error}")
        except InputError as error:
            self.simulation.watch.report("believed", f"the sweep was refused: {error}")
            self.said = "refused"
        finally:
            if self.process.is_alive:
                self._dismiss()
                self.process.exit()
            else:  # Ray notices after a while; a node that is out of reach, much later
                delay = self.simulation.world.random.choice([0.0, 2.0, 30.0, 120.0])
                self.simulation.world.at(delay, self._dismiss)

    def _dismiss(self) -> None:
        for worker in self.workers.values():
            worker.kill()

    def _stop(self) -> None:
        self.is_stopping = True
        self.news.set()

    def _drive(self) -> str:
        spec, store = self.simulation.spec, self.simulation.store()
        require_lock(store, spec.name)
        lock = read_lock(store, spec.name)
        if store.read(f"sweeps/{spec.name}/spec.yaml") is not None and stored_spec(store, spec.name) != spec:
            raise InputError("begun with another spec")
        lease = Lease.acquire(store, spec.name, self._stop)
        try:
            ledger = Ledger(store, spec.name, lease.check)
            lock = read_lock(store, spec.name)
            if lock is not None:
                ledger.keep_copy(lock)
                if store.read(f"sweeps/{spec.name}/spec.yaml") is None:
                    write_spec(store, spec.name, yaml_of(spec))
            if lock is not None and is_complete(spec, ledger) and not self._has_more(ledger):
                measure(spec, ledger)
                return "complete"
            inputs = self.simulation.store(f"{spec.name}/driver", lease.check).stage({"kind": "images", "sha256": "0" * 64})
            inputs.make(lambda _: Output(files={"tensors.safetensors": b"images" * 9}))
            lease.check()
            write_spec(store, spec.name, yaml_of(spec))
            if lock is None:
                ledger.lock(SweepLock({"code_schema": CODE_SCHEMA, "digest": spec.digest, "startup": STARTUP}))
            request = Request(1, 1) if self.simulation.confirms else None
            dispatcher = Dispatcher(spec, ledger, STARTUP, lambda trial, result: self._record(ledger, trial, result), request)
            return self._hand_out(dispatcher, lease)
        finally:
            lease.release()

    def _has_more(self, ledger: Ledger) -> bool:
        return self.simulation.confirms and not ledger.confirmations()

    def _record(self, ledger: Ledger, trial: Any, result: Any) -> None:
        """What the tracker does: a file of the sweep's own that grows."""
        if result is not None:
            ledger.write("mlflow.json", {**(ledger.read("mlflow.json") or {}), str(trial.id): f"run of {trial.id}"})

    def _hand_out(self, dispatcher: Dispatcher, lease: Lease) -> str:
        ledger, spec = dispatcher.ledger, self.simulation.spec
        while True:
            while len(self.workers) < spec.search.concurrency and not self.is_stopping:
                chosen = dispatcher.next_trial(self.workers)
                if isinstance(chosen, (Wait, Finished)):
                    break
                self._start_worker(chosen, lease)
            if self.is_stopping:
                return "stopped"
            if not self.workers:
                if dispatcher.stopped_by is not None:
                    return "five equal failures"
                return "complete" if is_complete(spec, ledger) else "not complete"
            self._await_message(dispatcher)

    def _await_message(self, dispatcher: Dispatcher) -> None:
        """Until a trial ended, or its worker died: then it is handed out again."""
        while not self.inbox and not self.is_stopping:
            gone = [number for number, worker in self.workers.items() if not worker.is_alive]
            if gone:
                for number in gone:
                    del self.workers[number]
                return
            self.news.wait(5.0)
            self.news.clear()
        for number, worker, message in self.inbox:
            if self.workers.get(number) is worker:
                del self.workers[number]
            if "raised" in message:
                raise message["raised"]
            dispatcher.finish(number, message["result"])
        self.inbox = []

    def _start_worker(self, trial: Any, lease: Lease) -> None:
        simulation = self.simulation
        holder = lease.holder

        def work() -> None:
            message: dict[str, Any]
            name = simulation.spec.name
            try:
                store = simulation.store()
                store = simulation.store(f"{name}/{trial.id}", guard_for(store, name, holder.epoch, holder.token))
                message = {"result": Run(trial, store, simulation.world, diverges=simulation.diverges).result()}
            except Diverged as error:
                message = {"result": failure(error)}
            except StoreFailure as error:
                message = {"raised": error}
            except Fenced as error:
                message = {"raised": error}
            self.inbox.append((trial.id, process, message))
            self.news.set()
            process.exit()

        host = simulation.world.random.choice(simulation.hosts)
        process = simulation.start(host, f"{self.process.name} worker of {trial.id}", work)
        self.workers[trial.id] = process


class Task:
    """One short command in a process of its own; `error` is what it left with."""

    def __init__(self, simulation: Simulation, host: Host, name: str, work: Callable[[], Any], *, mends: bool = False) -> None:
        self.error: RayltError | None = None
        self.value: Any = None

        def main() -> None:
            try:
                self.value = work()
            except Killed:
                raise
            except RayltError as error:
                self.error = error
                simulation.world.say(f"{name} leaves: {error}")
                if isinstance(error, Damaged):
                    simulation.damage_was_reported(error)
            if self.process.is_alive:
                self.process.exit()

        self.process = simulation.start(host, name, main)
        if mends:
            simulation.menders.add(self.process)


def mend(simulation: Simulation) -> int:
    """`raylt store verify --repair`; what is left."""
    store, contents = simulation.store(), simulation.contents()
    found = verify(store)
    for error in found.damaged:
        simulation.damage_was_reported(error)
    simulation.watch.check_reported(contents, found.damaged)
    if found.damaged:
        for line in repair(store, found):
            simulation.world.say(line)
        return len(verify(store).damaged)
    return 0


def read(simulation: Simulation) -> None:
    """`raylt results` while others write."""
    store = simulation.store()
    name = simulation.spec.name
    if store.read(f"sweeps/{name}/spec.yaml") is not None and read_lock(store, name) is not None:
        results(stored_spec(store, name), existing(store, name))


def ask_to_stop(simulation: Simulation) -> None:
    request_stop(simulation.store(), simulation.spec.name)


class User:
    """Starts drivers until the sweep is complete, mends what is reported damaged, and does not always wait for the last one."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.drivers = simulation, 0
        home = Host(simulation.world, "home")
        self.process = Process(home, "user")
        Thread(self.process, self._main)

    def _main(self) -> None:
        while not self._is_done() and self.drivers < 40:
            self._once()
        if self.drivers >= 40:
            self.simulation.watch.report("stuck", "40 drivers did not complete the sweep")

    def _once(self) -> None:
        world = self.simulation.world
        driver = self.start_driver()
        patience = world.random.choice([40.0, 100.0, 1000.0]) if self.simulation.faults else 4000.0
        driver.process.ended.wait(patience)
        if driver.said == "damaged":
            task = Task(
                self.simulation, world.random.choice(self.simulation.hosts), "repair", lambda: mend(self.simulation), mends=True
            )
            task.process.ended.wait(1000.0)
        elif driver.said == "complete":
            return
        elif driver.said == "LeaseHeld":
            world.sleep(60.0)
        world.sleep(world.random.choice([0.0, 1.0, 20.0, 70.0]))

    def start_driver(self) -> Driver:
        self.drivers += 1
        driver = Driver(self.simulation, self.simulation.world.random.choice(self.simulation.hosts), self.drivers)
        self.last = driver
        return driver

    def _is_done(self) -> bool:
        return self.drivers > 0 and self.last.said == "complete"
