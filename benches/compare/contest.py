"""What images.py and records.py share: contenders that are measured in turn, each in a process of its own, on the same files.

A contender is a function that gives batches. Of each one

1. every configuration that its entry lists (workers, threads, ...) is run for a moment, and the fastest is kept,
2. one epoch is taken and looked at: samples, shapes, and sums that those of the others must equal,
3. in every round, after all others had theirs, an endless run is timed: a warm-up, then whole batches for so many seconds.

Nothing is done with a batch that is timed but to let it go. Starting up, compiling graphs and forking workers come before the warm-up. CPU time is that of the
process and all that descend from it, user and system, over the same seconds; memory is their proportional set size at the end, of forebay what is resident. `forebay bench` counts
the same way, but in whole epochs: it takes one to warm up, then as many as last that long.

A contender that lacks a package, or that fails, is named below the table with the reason.
"""

import argparse
import dataclasses
import glob
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
TICK = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Contender:
    """One way to load the data. `build(context, **config)` gives batches, of one epoch or (`context.endless`) for ever."""

    name: str
    modules: list  # that must be there
    packages: list  # whose versions are printed
    build: object
    configs: list = dataclasses.field(default_factory=lambda: [{}])
    same: str = "yes"  # or in what its work is not the same
    needs: object = None  # says of the arguments why it cannot run, or None
    path: object = None  # says of the arguments what PYTHONPATH begins with


@dataclasses.dataclass
class Context:
    """What a contender is told."""

    files: list
    folder: Path
    options: argparse.Namespace
    batch: int
    endless: bool


# What a process tree has used


def stats():
    """Parent, ticks of CPU time and those of children that have ended, of every process."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = Path(path).read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        found[int(path.split("/")[2])] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


def tree(found):
    """This process and all below it."""
    below = {}
    for pid, (parent, _) in found.items():
        below.setdefault(parent, []).append(pid)
    members, left = [], [os.getpid()]
    while left:
        members.append(left.pop())
        left += below.get(members[-1], [])
    return members


def cpu_seconds():
    found = stats()
    return sum(found[pid][1] for pid in tree(found) if pid in found) / TICK


def memory_bytes():
    total = 0
    for pid in tree(stats()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


# TFRecord and tf.Example, for those who bring no reader of their own


def offsets(path):
    """Where the records of a TFRecord file lie: (start, length) of each payload. Reads nothing else, checks nothing."""
    spans, at, size = [], 0, os.path.getsize(path)
    file = os.open(path, os.O_RDONLY)
    while at < size:
        (length,) = struct.unpack("<Q", os.pread(file, 8, at))
        spans.append((at + 12, length))
        at += length + 16
    os.close(file)
    return spans


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data, start, end):
    """Number, and the value or the span, of the fields of a protobuf message."""
    while start < end:
        key, start = varint(data, start)
        if key & 7 == 0:
            value, start = varint(data, start)
            yield key >> 3, value
        else:
            length, start = varint(data, start)
            yield key >> 3, (start, start + length)
            start += length


def features(data):
    """The features of a tf.Example: the span of the first value of bytes, or the first integer."""
    found = {}
    for _, everything in fields(data, 0, len(data)):
        for _, entry in fields(data, *everything):
            (_, name), (_, feature) = fields(data, *entry)
            for kind, values in fields(data, *feature):
                if kind == 1:
                    found[data[slice(*name)].decode()] = next(fields(data, *values))[1]
                elif kind == 3:
                    _, value = next(fields(data, *values))
                    found[data[slice(*name)].decode()] = varint(data, value[0])[0] if isinstance(value, tuple) else value
    return found


def is_fresh(path, source):
    """Whether what was made of a file is there, and no older than that."""
    return Path(path).exists() and Path(path).stat().st_mtime >= Path(source).stat().st_mtime


def write_index(file):
    """Where records begin and how long they are, as DALI wants it beside them."""
    index = Path(index_of(file))
    if not is_fresh(index, file):
        index.write_text("".join(f"{start - 12} {length + 16}\n" for start, length in offsets(file)))


def index_of(file):
    return str(Path(file).with_suffix(".idx"))


class Reads:
    """Opens each file once a process, and reads spans of it."""

    def __init__(self, files):
        self.files, self.open = files, {}

    def __getstate__(self):
        return {**self.__dict__, "open": {}}

    def span(self, file, start, length):
        if file not in self.open:
            self.open[file] = os.open(self.files[file], os.O_RDONLY)
        return os.pread(self.open[file], length, start)


# One contender, in a process of its own


def measure(batches, size, warm_up, seconds):
    """Rate over whole batches, behind a warm-up that begins with the first of them."""
    batches = iter(batches)
    next(batches)
    start, taken = time.perf_counter(), 0
    while time.perf_counter() - start < warm_up or taken < 2:
        next(batches)
        taken += 1
    samples, taken = 0, 0
    cpu, start = cpu_seconds(), time.perf_counter()
    while (wall := time.perf_counter() - start) < seconds or taken < 2:
        samples += size(next(batches))
        taken += 1
    cpu = cpu_seconds() - cpu
    return {"samples_per_s": samples / wall, "samples_per_cpu_s": samples / max(cpu, 0.01), "memory_bytes": memory_bytes()}


def child(task, contest):
    contender = next(contender for contender in contest.contenders if contender.name == task["name"])
    options = argparse.Namespace(**task["options"])
    context = Context(task["files"], Path(task["folder"]), options, contest.batch, task["what"] == "time")
    batches = contender.build(context, **task["config"])
    result = measure(batches, contest.size, task["warm_up"], task["seconds"]) if context.endless else contest.digest(batches)
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    # Workers are ended by whoever started this process: not every framework ends an endless run in peace.
    os._exit(0)


# All of them, in turn


class Failed(Exception):
    pass


def run_child(command, contender, config, what, where, options, warm_up=0.0, seconds=0.0):
    task = {"name": contender.name, "config": config, "what": what, "warm_up": warm_up, "seconds": seconds, "options": vars(options), **where}
    path = [str(part) for part in [contender.path and contender.path(options), os.environ.get("PYTHONPATH")] if part]
    # No accelerator, and no word from TensorFlow but errors.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, *command, "--child", json.dumps(task)]
    # Files and no pipes: workers that outlive the process hold those open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        late = ""
        try:
            process.wait(options.timeout)
        except subprocess.TimeoutExpired:
            late = f"nothing after {options.timeout:g} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        out.seek(0)
        err.seek(0)
        out, err = out.read(), err.read() + "\n" + late
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed((err.strip().splitlines() or ["it ended without a word"])[-1][:300])
    return json.loads(lines[-1])


def forebay(options, arguments, epochs):
    command = [str(options.forebay), "bench", *arguments, "--epochs", str(epochs), "--json", "--quiet"]
    done = subprocess.run(command, cwd=options.root, capture_output=True, text=True)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    measured = json.loads(done.stdout)
    if not measured["checked"]:
        raise Failed("it delivered other samples than were made")
    measured["memory_bytes"] = measured["rss_bytes"][-1]
    return measured


def missing(contender, options):
    """Why a contender cannot run here."""
    for module in contender.modules:
        if importlib.util.find_spec(module) is None:
            return f"there is no module {module}"
    return contender.needs(options) if contender.needs else None


def version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def figure(value):
    return f"{value:,.0f}"


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--forebay", type=Path, default=root / "target/release/forebay", help="the command")
    parser.add_argument("--root", type=Path, default=root, help="the folder whose target/bench has the data, or gets it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a timed run")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before it")
    parser.add_argument("--trial", type=float, default=4.0, help="seconds for each configuration; 0 takes the first of each")
    parser.add_argument("--only", help="contenders whose names contain one of these, separated by commas; forebay always runs")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds after which a run is given up")
    parser.add_argument("--json", type=Path, help="a file for all readings, configurations and checks")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def say(text):
    print(text, file=sys.stderr, flush=True)


def attempt(contest, contender, action):
    """What the action gives, or nothing, and the contender is out."""
    try:
        return action()
    except Failed as failed:
        contest.out[contender.name] = str(failed)
        say(f"  {contender.name} fails: {failed}")
        return None


@dataclasses.dataclass
class Contest:
    """A workload, and who takes part."""

    command: list  # the script and its positional arguments
    title: str
    contenders: list
    forebay: list  # arguments of `forebay bench`
    samples: int
    batch: int
    folder: str  # below target/bench, of the files
    size: object  # samples of a batch
    digest: object  # what an epoch of batches holds
    judge: object  # says of digests by name what is wrong with which
    sum: str = "labels"  # what `checked_sum` of forebay adds up
    prepare: object = None  # writes what else is needed, once
    out: dict = dataclasses.field(default_factory=dict)

    def run(self, options):
        options.forebay, options.root = options.forebay.resolve(), options.root.resolve()
        plain = argparse.Namespace(**{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()})
        say(f"forebay: {self.title}")
        first = forebay(options, self.forebay, 1)  # makes the data, where it is not there
        folder = options.root / "target/bench" / self.folder
        files = sorted(map(str, folder.glob("*.tfrecord")))
        if self.prepare:
            self.prepare(options, folder, files)
        where = {"files": files, "folder": str(folder)}
        only = options.only.split(",") if options.only else [""]
        chosen = []
        for contender in self.contenders:
            if not any(part in contender.name for part in only):
                continue
            if reason := missing(contender, options):
                self.out[contender.name] = reason
                continue
            chosen.append(contender)

        def timed(contender, config, warm_up, seconds):
            return run_child(self.command, contender, config, "time", where, plain, warm_up, seconds)

        trials, configs = {}, {}
        for contender in chosen:
            configs[contender.name] = contender.configs[0]
            if options.trial and len(contender.configs) > 1:
                tried = []
                for config in contender.configs:
                    if result := attempt(self, contender, lambda: timed(contender, config, options.warm_up / 2, options.trial)):
                        tried.append((result["samples_per_s"], config))
                        say(f"  {contender.name} {config}: {figure(result['samples_per_s'])}")
                if tried:
                    configs[contender.name] = max(tried, key=lambda one: one[0])[1]
                    self.out.pop(contender.name, None)  # one that runs is enough
                trials[contender.name] = tried
        digests = {}
        for contender in [contender for contender in chosen if contender.name not in self.out]:
            config = configs[contender.name]
            if result := attempt(self, contender, lambda: run_child(self.command, contender, config, "check", where, plain)):
                digests[contender.name] = result
                say(f"  {contender.name} delivers {json.dumps(result)}")
        digests["forebay"] = {"samples": first["checked_samples"], self.sum: int(first["checked_sum"], 16)}
        digests["forebay"] |= {name: first[name] for name in ("mean",) if first.get(name) is not None}
        for name, wrong in self.judge(digests, self.samples).items():
            self.out[name] = f"it delivers other data: {wrong}"
            say(f"  {name} is wrong: {wrong}")
        readings = {"forebay": [], **{contender.name: [] for contender in chosen if contender.name not in self.out}}
        epochs = max(1, math.ceil(options.seconds * first["samples_per_s"] / self.samples))
        for round_ in range(options.rounds):
            say(f"round {round_ + 1} of {options.rounds}")
            reading = forebay(options, self.forebay, epochs)
            readings["forebay"].append(reading)
            say(f"  forebay: {figure(reading['samples_per_s'])}")
            for contender in chosen:
                if contender.name in self.out:
                    continue
                run = lambda: timed(contender, configs[contender.name], options.warm_up, options.seconds)  # noqa: E731
                if result := attempt(self, contender, run):
                    readings[contender.name].append(result)
                    say(f"  {contender.name}: {figure(result['samples_per_s'])}")
        stored = sum(os.path.getsize(file) for file in files) / self.samples
        self.print(options, stored, chosen, configs, readings, digests, trials)

    def print(self, options, stored, chosen, configs, readings, digests, trials):
        by_name = {contender.name: contender for contender in chosen}
        build = subprocess.run([str(options.forebay), "--version"], capture_output=True, text=True).stdout.strip()
        versions = {"forebay": build}
        for contender in chosen:
            found = [version(package) for package in contender.packages]
            if contender.path:  # what lies there comes first
                there = importlib.metadata.distributions(path=[str(contender.path(options))])
                found += [f"before them {package.name} {package.version}" for package in there]
            versions[contender.name] = ", ".join(filter(None, found))
        machine = f"{CORES} cores, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
        print(f"\n{self.title}: batches of {self.batch}, {self.samples:,} samples of {stored:,.0f} bytes, {options.rounds} rounds in turn of {options.seconds:g} s; {machine}\n")
        print("| | samples/s, median | range | per CPU second | of forebay | memory, MiB | same work | configuration |")
        print("|---|--:|--:|--:|--:|--:|---|---|")
        middle = lambda name, what: statistics.median(one[what] for one in readings[name])  # noqa: E731
        running = [name for name in readings if readings[name]]
        for name in sorted(running, key=lambda name: -middle(name, "samples_per_s")):
            rates = [one["samples_per_s"] for one in readings[name]]
            share = f"{middle(name, 'samples_per_s') / middle('forebay', 'samples_per_s'):.2f}"
            memory = figure(middle(name, "memory_bytes") / 2**20)
            config = " ".join(f"{key}={value}" for key, value in configs.get(name, {}).items()) or "as it comes"
            same = by_name[name].same if name in by_name else "yes"
            ranges = f"{figure(min(rates))} to {figure(max(rates))}"
            cells = [name, figure(middle(name, "samples_per_s")), ranges, figure(middle(name, "samples_per_cpu_s")), share, memory, same, config]
            print(f"| {' | '.join(cells)} |")
        print()
        for name in running:
            print(f"- {name}: {versions[name]}; delivered {json.dumps(digests[name])}")
        for name, reason in self.out.items():
            print(f"- left out: {name}: {reason}")
        if options.json:
            known = {"title": self.title, "stored_bytes": stored, "machine": machine, "rounds": options.rounds, "seconds": options.seconds, "versions": versions}
            known |= {"configs": configs, "trials": trials, "delivered": digests, "left_out": self.out, "readings": readings}
            options.json.write_text(json.dumps(known, indent=1) + "\n")


def main(contest, options):
    if options.child:
        task = json.loads(options.child)
        child(task, contest)
    # So that what was started is ended, however this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    contest.run(options)
