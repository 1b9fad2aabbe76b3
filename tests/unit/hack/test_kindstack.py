"""hack/kindstack: what it decides before there is a cluster."""

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from devstack.cluster import ClusterError, create_kind
from kindstack import __main__ as main
from kindstack import base, cluster, engine, images, networks, node_image, programs, shell
from kindstack.cluster import KindCluster, State
from kindstack.phases import Phases
from kindstack.shell import KindError, MachineLacks
from waiting import eventually

WRAPPER = Path(engine.__file__).with_name("runc_wrapper.py")
PRIVILEGED = {
    "capabilities": {
        "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"],
        "effective": ["CAP_SYS_RESOURCE"],
    },
    "oomScoreAdj": -998,
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
}

STATE = State(
    name="llm-operator-0",
    image="node:1",
    own_engine=True,
    docker_environment={},
    kind="kind",
    tools="/tools",
    services="10.100.0.0/16",
)


@pytest.fixture(autouse=True)
def no_engine_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test with a played engine would end the real one, and every cluster in it."""
    monkeypatch.setattr(engine, "FOLDER", tmp_path / "engine-of-nobody")


def wrapped(*arguments: str, cwd: Path) -> str:
    """What the runtime behind the wrapper is called with."""
    command = [sys.executable, "-I", str(WRAPPER), "/bin/echo", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("option", [["--bundle", "bundle"], ["--bundle=bundle"], ["-b", "bundle"]])
def test_a_new_container_asks_for_nothing_that_the_machine_lacks(
    tmp_path: Path, option: list[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text(
        json.dumps({"process": PRIVILEGED, "hostname": "node"})
    )
    assert wrapped("--root", "r", "create", *option, "name", cwd=tmp_path) == " ".join(
        ["--root", "r", "create", *option, "name"]
    )
    assert json.loads((tmp_path / "bundle" / "config.json").read_text()) == {
        "process": {"capabilities": {"bounding": ["CAP_CHOWN"], "effective": []}, "oomScoreAdj": 0},
        "hostname": "node",
    }


def test_so_does_a_command_in_a_running_container(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text(json.dumps(PRIVILEGED))
    wrapped("exec", "--process", "process.json", "name", cwd=tmp_path)
    assert json.loads((tmp_path / "process.json").read_text())["capabilities"]["bounding"] == [
        "CAP_CHOWN"
    ]


def test_other_verbs_touch_no_file(tmp_path: Path) -> None:
    assert wrapped("delete", "name", cwd=tmp_path) == "delete name"


def test_without_root_the_error_says_both_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.os, "geteuid", lambda: 1000)
    with pytest.raises(MachineLacks, match=r"start your engine, or run this as root"):
        engine.start(Path("/bin/true"), print)


@pytest.mark.parametrize(
    ("error", "status"), [(MachineLacks("no engine"), 3), (KindError("a failed build"), 1)]
)
def test_ci_can_tell_a_machine_without_clusters_from_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: KindError,
    status: int,
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setitem(main.VERBS, "test", refuse)
    monkeypatch.setattr(sys, "argv", ["hack/e2e-kind", "--tools", "/tools"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == status
    assert str(error) in capsys.readouterr().out


@pytest.mark.parametrize(("containers", "ends"), [("", True), ("abc\n", False)])
def test_an_engine_of_ours_ends_with_the_last_cluster_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, containers: str, ends: bool
) -> None:
    asked: list[tuple[str, ...]] = []

    def docker(_: engine.Engine, *words: str) -> str:
        asked.append(words)
        return containers if words[0] == "ps" else ""

    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine.Engine, "docker", docker)
    with subprocess.Popen(["sleep", "60"]) as daemon:
        (tmp_path / "docker.pid").write_text(str(daemon.pid))
        engine.stop(engine.Engine(own=True))
        assert (daemon.poll() is None) is not ends
        assert (("network", "rm", "kind") in asked) is ends, "its bridge would stay on the machine"
        daemon.kill()


def test_a_failed_command_is_named_with_what_it_said() -> None:
    with pytest.raises(
        KindError, match=r"sh -c echo 'no space left on device'.*failed \(exit 3\).*free some space"
    ):
        shell.run("sh", "-c", "echo 'no space left on device' >&2; exit 3")


def test_a_long_output_keeps_both_its_ends() -> None:
    text = shell.clipped("reason" + "x" * 5000 + "end")
    assert text.startswith("reason")
    assert text.endswith("end")
    assert len(text) < 3100


def test_where_no_cluster_is_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(KindError, match="hack/e2e-kind up"):
        KindCluster.attach(tmp_path)


def test_phases_are_told_as_they_go_in_a_table_and_as_json(tmp_path: Path) -> None:
    lines: list[str] = []
    phases = Phases(lines.append)
    with phases("first"):
        assert lines == ["… first"]
    assert lines[1].startswith("✓ first: ")
    assert [line.split()[0] for line in phases.table().splitlines()] == ["first", "total"]
    phases.write(tmp_path / "phases.json")
    assert json.loads((tmp_path / "phases.json").read_text()) == {"first": 0.0}


def test_the_images_of_the_pods_network_are_those_in_the_node() -> None:
    """No registry has them: a name that differs would be an image that never comes."""
    manifests = (node_image.RECIPE / "manifests" / "default-cni.yaml").read_text()
    assert sorted(re.findall(r"image: (\S+)", manifests)) == sorted(node_image.NETWORK)


class Recorder(engine.Engine):
    """An engine that answers from a table of first words, and keeps what it was asked."""

    def __init__(self, own: bool = True, **said: str | KindError) -> None:
        super().__init__(own=own)
        object.__setattr__(self, "said", said)
        object.__setattr__(self, "asked", [])

    def docker(self, *words: object, **_: object) -> str:
        self.asked.append(words)  # type: ignore[attr-defined]
        answer: str | KindError = self.said.get(str(words[0]), "")  # type: ignore[attr-defined]
        if isinstance(answer, KindError):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("words", "verb", "tests"),
    [
        ([], "test", ["tests/kind"]),
        (["up"], "up", None),
        (["--image", "node:1", "up"], "up", None),
        (["-k", "keys"], "test", ["tests/kind", "-k", "keys"]),
        (["test", "-k", "docs"], "test", ["tests/kind", "-k", "docs"]),
        (["tests/kind/test_keys.py", "-x"], "test", ["tests/kind/test_keys.py", "-x"]),
        (["tests/kind/test_keys.py::test_a"], "test", ["tests/kind/test_keys.py::test_a"]),
        (
            ["--ignore", "tests/kind/test_keys.py"],
            "test",
            ["tests/kind", "--ignore", "tests/kind/test_keys.py"],
        ),
    ],
)
def test_words_without_a_verb_are_for_pytest_and_a_path_replaces_the_suite(
    monkeypatch: pytest.MonkeyPatch, words: list[str], verb: str, tests: list[str] | None
) -> None:
    called: list[tuple[str, list[str]]] = []
    for name in main.VERBS:
        monkeypatch.setitem(
            main.VERBS, name, lambda _, rest, name=name: called.append((name, rest)) or 0
        )
    monkeypatch.setattr(sys, "argv", ["hack/e2e-kind", *words, "--tools", "/tools"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    assert [each for each, _ in called] == [verb]
    if tests is not None:
        assert shell.selection("tests/kind", called[0][1]) == tests


@pytest.mark.parametrize("verb", ["prepare", "up", "load", "down"])
def test_a_word_that_a_verb_would_ignore_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setitem(main.VERBS, verb, lambda *_: 0)
    monkeypatch.setattr(
        sys, "argv", ["hack/e2e-kind", verb, "--imgae", "node:1", "--tools", "/tools"]
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert f"{verb} takes no --imgae node:1" in capsys.readouterr().out


def test_a_start_that_fails_ends_the_engine_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended: list[engine.Engine] = []
    ours = Recorder(images="", manifest=KindError("no such image"))
    monkeypatch.setattr(programs, "kind", lambda _: Path("/bin/true"))
    monkeypatch.setattr(engine, "find", lambda *_: ours)
    monkeypatch.setattr(engine, "require_space", lambda *_: None)
    monkeypatch.setattr(engine, "stop", ended.append)
    with pytest.raises(KindError, match="check KIND_IMAGE"):
        KindCluster.start(tmp_path, tmp_path, Phases(lambda _: None), image="no/such:image")
    assert ended == [ours]


@pytest.mark.parametrize("fails", [False, True])
def test_what_needs_no_cluster_is_built_before_one_is_started(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    done: list[object] = []
    ours = engine.Engine(own=True)

    def build(_: engine.Engine, image: str, __: object) -> None:
        if fails:
            raise KindError("no package can be had")
        done.append(image)

    monkeypatch.setattr(main, "engine_for_clusters", lambda _: (Path("/bin/true"), ours))
    monkeypatch.setattr(node_image, "choose", lambda _, image, __: done.append(image))
    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(engine, "stop", done.append)
    with contextlib.nullcontext() if not fails else pytest.raises(KindError):
        main.verb_prepare(argparse.Namespace(image="node:1"), [])
    built = [] if fails else ["llm-operator:kind", "llm-runtime:kind"]
    assert done == ["node:1", *built, ours]


@pytest.mark.parametrize("trouble", ["it does not answer", "it can't start privileged containers"])
def test_an_engine_that_is_of_no_use_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    (tmp_path / "dockerd").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "dockerd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(engine, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(engine, "FOLDER", tmp_path / "engine")
    monkeypatch.setattr(engine, "START_SECONDS", 1)
    monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "may_raise_limits", lambda: True)
    monkeypatch.setattr(engine, "answers", lambda _: "answer" not in trouble)
    monkeypatch.setattr(engine, "refusal", lambda *_: trouble)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def keep(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(engine.subprocess, "Popen", keep)
    with pytest.raises(KindError):
        engine.start(Path("/bin/true"), lambda _: None)
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.kill()
    assert len(started) == 1
    assert not running


def test_an_engine_that_has_ended_is_not_looked_for_by_its_old_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    with subprocess.Popen(["sleep", "60"]) as another:
        (tmp_path / "docker.pid").write_text(str(another.pid))
        engine.stop(Recorder(ps=KindError("no engine answers")))
        assert another.poll() is None
        another.kill()


def test_free_space_is_asked_of_the_disk_that_the_engine_writes_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def usage(folder: object) -> object:
        asked.append(str(folder))
        if "elsewhere" in str(folder):
            raise FileNotFoundError(folder)
        return engine.shutil._ntuple_diskusage(100 << 30, 99 << 30, 1 << 30)  # type: ignore[attr-defined]

    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine.shutil, "disk_usage", usage)
    with pytest.raises(MachineLacks, match="1 GiB are free in /mnt/docker"):
        engine.require_space(Recorder(own=False, info="/mnt/docker\n"), 15)
    with pytest.raises(MachineLacks, match=f"free in {tmp_path}"):
        engine.require_space(Recorder(own=True), 15)
    engine.require_space(Recorder(own=False, info="/elsewhere\n"), 15)
    assert asked == ["/mnt/docker", str(tmp_path), "/elsewhere"]


def test_the_runtime_wrapper_takes_paths_with_blanks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder's"
    folder.mkdir()
    monkeypatch.setattr(engine, "FOLDER", folder)
    runc = folder / "runc"
    runc.write_text('#!/bin/sh\necho "$@"\n')
    runc.chmod(0o755)
    monkeypatch.setattr(engine.shutil, "which", lambda _: str(runc))
    said = subprocess.run(
        [engine.runtime_wrapper(), "delete", "a b"], capture_output=True, text=True
    )
    assert said.stdout == "delete a b\n", said.stderr


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("https://packages.example/simple/", "https://packages.example/simple/"),
        ("https://a/simple  https://b/simple", '"https://a/simple https://b/simple"'),
        ("https://a/simple\nhttps://b/simple", '"https://a/simple https://b/simple"'),
        ("https://me:pa$word@a/simple", '"https://me:pa\\$word@a/simple"'),
        ('say "é"', '"say \\"é\\""'),
    ],
)
def test_a_setting_reaches_the_image_as_it_is(value: str, written: str) -> None:
    assert base.quoted(value) == written


def test_images_of_another_cluster_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = "registry.k8s.io/pause:3.10"
    ours = "localhost/podnet:1"
    tags = {theirs: "theirs"}

    class Tagging(engine.Engine):
        def docker(self, *words: object, **_: object) -> str:
            name = str(words[-1])
            if words[0] == "images":
                return tags.get(name, "")
            if words[:2] == ("image", "inspect"):
                return tags[name]
            if words[0] == "tag":
                tags[name] = str(words[1])
            if words[0] == "rmi":
                for each in words[1:]:
                    del tags[str(each)]
            return "container"

    monkeypatch.setattr(
        node_image, "image_names", lambda *_: {"pause": [theirs], "kubernetes": [ours]}
    )
    made = {"pause": "made-pause", "kubernetes": "made-kubernetes", "node": "made-node"}
    node_image.preload(Tagging(own=False), made, "node", lambda _: None)
    assert tags == {theirs: "theirs"}


def test_a_network_of_nodes_without_ipv4_is_told(tmp_path: Path) -> None:
    without = KindCluster(tmp_path, STATE)
    without.engine = Recorder(network='[{"Subnet": "fc00::/64", "Gateway": "fc00::1"}]')
    with pytest.raises(KindError, match="network kind has no IPv4 gateway"):
        without.host_address()


def test_a_cluster_takes_no_network_that_this_machine_has_a_way_to() -> None:
    assert networks.free(networks.SERVICES, 7, []) == "10.107.0.0/16"
    beside = [IPv4Network("10.149.0.0/16"), IPv4Network("10.100.4.0/24")]
    assert networks.free(networks.SERVICES, 49, beside) == "10.101.0.0/16"
    assert networks.free(networks.PODS, 49, beside) == "10.199.0.0/16"
    # A wide route leaves no network free: a part of it in which no other route ends does as well.
    assert (
        networks.free(networks.SERVICES, 49, [IPv4Network("10.0.0.0/8"), *beside])
        == "10.101.0.0/16"
    )
    with pytest.raises(KindError, match="ip route"):
        networks.free(
            networks.SERVICES, 0, [IPv4Network(f"10.{100 + each}.1.0/24") for each in range(50)]
        )


def test_routes_are_read_from_ip_else_from_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = '[{"dst": "default", "dev": "eth0"}, {"dst": "10.119.0.0/16"}, {"dst": "192.0.2.7"}]'
    monkeypatch.setattr(networks, "run", lambda *_: listed)
    assert networks.routed() == [IPv4Network("10.119.0.0/16"), IPv4Network("192.0.2.7/32")]
    table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    rows = (("0.0.0.0", "0.0.0.0"), ("10.119.0.0", "255.255.0.0"))
    for address, mask in rows:
        numbers = [
            int.from_bytes(socket.inet_aton(each), sys.byteorder) for each in (address, mask)
        ]
        table += f"eth0\t{numbers[0]:08X}\t00000000\t0001\t0\t0\t0\t{numbers[1]:08X}\t0\t0\t0\n"
    (tmp_path / "route").write_text(table)
    monkeypatch.setattr(networks, "TABLE", tmp_path / "route")
    monkeypatch.setattr(networks, "run", lambda *_: "not JSON")
    assert networks.routed() == [IPv4Network("10.119.0.0/16")]


class Clusters:
    """kind, kubectl and an engine, as far as a cluster's start and end ask them;
    `words` are all they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *listed: str) -> None:
        self.words: list[tuple[str, ...]] = []
        self.listed = list(listed)
        monkeypatch.setattr(cluster, "run", self.run)
        monkeypatch.setattr(engine.Engine, "docker", self.docker)
        monkeypatch.setattr(engine, "find", lambda *_: engine.Engine(own=False))
        monkeypatch.setattr(engine, "require_space", lambda *_: None)
        monkeypatch.setattr(programs, "kind", lambda _: Path("kind"))
        monkeypatch.setattr(node_image, "choose", lambda *_: "node:1")
        monkeypatch.setattr(networks, "routed", lambda: [])

    def run(self, *words: object, **_: object) -> str:
        self.words.append(tuple(map(str, words)))
        return "\n".join(self.listed) if words[1:3] == ("get", "clusters") else ""

    def docker(self, *words: object, **_: object) -> str:
        self.words.append(tuple(map(str, words)))
        return "172.18.0.2\n" if words[0] == "inspect" else ""

    @property
    def routes(self) -> list[str]:
        """What was asked of `ip route`."""
        return [
            " ".join(words[words.index("route") + 1 :]) for words in self.words if "route" in words
        ]


def test_a_route_is_removed_by_the_address_that_it_was_made_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Clusters(monkeypatch)
    started = KindCluster.start(tmp_path, tmp_path, Phases(lambda _: None))
    services = started.state.services
    assert asked.routes == [f"add {services} via 172.18.0.2"], (
        "not replace: it would take another's route over"
    )
    # Another process, and a cluster whose containers somebody has removed: kind does not list it.
    KindCluster.attach(tmp_path).stop()
    assert asked.routes[1:] == [f"del {services} via 172.18.0.2"]
    assert not (tmp_path / "state.json").exists()


def test_a_start_removes_the_route_of_a_run_that_was_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Clusters(monkeypatch)
    (tmp_path / "state.json").write_text(
        json.dumps({**asdict(STATE), "services": "10.142.0.0/16", "via": "172.18.0.9"})
    )
    KindCluster.start(tmp_path, tmp_path, Phases(lambda _: None))
    assert asked.routes[0] == "del 10.142.0.0/16 via 172.18.0.9"


def test_a_start_that_has_made_no_route_removes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Clusters(monkeypatch, STATE.name)
    KindCluster(tmp_path, STATE).stop()
    assert asked.routes == []
    assert ("kind", "delete", "cluster") in [words[:3] for words in asked.words]


def test_the_state_of_an_older_checkout_can_be_read(tmp_path: Path) -> None:
    old = {name: each for name, each in asdict(STATE).items() if name not in ("pods", "via")}
    (tmp_path / "state.json").write_text(json.dumps(old))
    assert KindCluster.attach(tmp_path).state == STATE


@pytest.mark.parametrize(
    ("listed", "ready"), [([], True), ([STATE.name], False), ([STATE.name], True)]
)
def test_a_kind_cluster_is_used_again_only_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: list[str], ready: bool
) -> None:
    asked = Clusters(monkeypatch, *listed)
    lines: list[str] = []
    (tmp_path / "state.json").write_text(json.dumps(asdict(STATE)))
    (tmp_path / "kubeconfig").touch()

    def run(*words: object, **options: object) -> str:
        if "/readyz" in words and not ready:
            raise KindError("connection refused")
        return asked.run(*words, **options)

    monkeypatch.setattr(cluster, "run", run)
    create_kind(tmp_path, None, tmp_path, lines.append)
    made = ("kind", "create", "cluster") in [words[:3] for words in asked.words]
    assert made is not (bool(listed) and ready)
    assert any("does not run any more" in line for line in lines) is made


@pytest.mark.parametrize("starts", [True, False])
def test_a_cluster_of_a_dead_engine_of_ours_can_be_removed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    starts: bool,
) -> None:
    started: list[Path] = []

    def start(program: Path, _: object) -> None:
        if not starts:
            raise MachineLacks("no engine is installed")
        started.append(program)

    def run(*words: object, **_: object) -> str:
        if not started:
            raise KindError("failed to list clusters: no engine answers")
        return ""

    monkeypatch.setattr(cluster, "run", run)
    monkeypatch.setattr(engine, "answers", lambda _: bool(started))
    monkeypatch.setattr(engine, "start", start)
    monkeypatch.setattr(engine, "stop", lambda _: None)
    monkeypatch.setattr(engine, "FOLDER", tmp_path / "engine")
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 0)
    monkeypatch.setattr(main, "FOLDER", tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(asdict(STATE)))
    assert main.verb_down(argparse.Namespace(), []) == 0
    assert not (tmp_path / "state.json").exists()
    assert started == ([Path("kind")] if starts else [])
    assert ("no engine is installed" in capsys.readouterr().out) is not starts


def test_a_cluster_in_a_persons_engine_is_kept_in_mind_until_that_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "answers", lambda _: False)
    monkeypatch.setattr(main, "FOLDER", tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({**asdict(STATE), "own_engine": False}))
    with pytest.raises(KindError, match="does not answer: start it"):
        main.verb_down(argparse.Namespace(), [])
    (tmp_path / "kubeconfig").touch()
    with pytest.raises(ClusterError, match="does not answer: start it"):
        create_kind(tmp_path, None, tmp_path, print)
    assert (tmp_path / "state.json").exists()


def test_without_root_the_state_of_roots_cluster_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "answers", lambda _: False)
    monkeypatch.setattr(engine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(main, "FOLDER", tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(asdict(STATE)))
    with pytest.raises(MachineLacks, match="run this as root"):
        main.verb_down(argparse.Namespace(), [])
    assert (tmp_path / "state.json").exists()


def test_an_engine_that_is_too_busy_to_answer_keeps_its_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(engine, "POLICY", tmp_path / "policy-rc.d")
    (tmp_path / "dockerd").write_text("#!/bin/sh\n")
    (tmp_path / "dockerd").chmod(0o755)
    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine, "answers", lambda _: False)
    monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
    (tmp_path / "docker.sock").touch()
    with subprocess.Popen(
        ["sh", "-c", "read word", f"unix://{tmp_path}/docker.sock"], stdin=subprocess.PIPE
    ) as daemon:
        (tmp_path / "docker.pid").write_text(str(daemon.pid))
        # For a moment after the process has begun, the kernel shows no command line of it.
        eventually(Path(f"/proc/{daemon.pid}/cmdline").read_bytes)
        with pytest.raises(KindError, match="runs and does not answer"):
            engine.start(Path("/bin/true"), lambda _: None)
        daemon.kill()
    assert (tmp_path / "docker.sock").exists()
    assert not engine.alive()


USER = (
    "import sys; from pathlib import Path; from kindstack import engine; engine.FOLDER ="
    " Path(sys.argv[1]); "
)


@pytest.fixture
def another_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the engine of `tmp_path`, until its standard input ends."""
    command = [
        sys.executable,
        "-c",
        USER + "engine.uses.begin(); print(flush=True); input()",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(shell.ROOT / "hack")}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process
        process.kill()


def test_an_engine_of_ours_stays_while_another_run_uses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, another_run: subprocess.Popen[str]
) -> None:
    """It has no container yet: it builds images, or is between two clusters."""
    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    with subprocess.Popen(["sleep", "60"]) as daemon:
        (tmp_path / "docker.pid").write_text(str(daemon.pid))
        engine.uses.begin()
        engine.stop(Recorder())
        assert daemon.poll() is None
        assert [each.name for each in (tmp_path / "users").iterdir()] == [str(another_run.pid)]
        # One that was killed counts no more, though its file is there.
        another_run.kill()
        another_run.wait()
        engine.stop(Recorder())
        assert daemon.poll() is not None
        daemon.kill()


def test_who_starts_an_engine_uses_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(engine, "answers", lambda _: True)
    (tmp_path / "docker.sock").touch()
    ours = engine.start(Path("/bin/true"), lambda _: None)
    assert (tmp_path / "users" / str(os.getpid())).exists()
    engine.stop(ours)
    assert not list((tmp_path / "users").iterdir())


@pytest.mark.parametrize(
    ("text", "stays"), [(f"#!/bin/sh\n{engine.MARK}\nexit 101\n", False), ("exit 101\n", True)]
)
def test_the_next_run_removes_what_a_killed_installation_left_but_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, stays: bool
) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text(text)
    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine, "POLICY", policy)
    monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(engine, "answers", lambda _: True)
    (tmp_path / "docker.sock").touch()
    engine.stop(engine.start(Path("/bin/true"), lambda _: None))
    assert policy.exists() is stays


@pytest.mark.parametrize("fails", [True, False])
def test_services_may_start_again_after_an_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    seen: list[bool] = []

    def run(*_: object, **__: object) -> str:
        seen.append(engine.policy_is_ours())
        if fails:
            raise KindError("no package has it")
        return ""

    monkeypatch.setattr(engine, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(MachineLacks) if fails else contextlib.nullcontext():
        engine.install(lambda _: None)
    assert all(seen)
    assert seen
    assert not engine.POLICY.exists()
