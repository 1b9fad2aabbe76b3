"""What the watches have shown: the last state of each object that is watched.

A look that reads it costs the API server nothing. It is never older than the event that caused the
look, and has every write of ours at once, because the answers to writes are put into it. Where it
can't know, it says so, and the caller asks the API server: while a stream is not open, and for an
object that was deleted by us until the watch has told of it.

An object is kept as JSON text. That takes a fifth of the memory of dictionaries, and no reader can
change what another one reads.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import orjson

from llm_operator.plans.names import DEPLOYMENT_LABEL
from llm_operator.state import Manifest

Read = TypeVar("Read")
GRAVES = 4096
"""Objects that are gone and whose last versions are remembered."""


class Place(NamedTuple):
    """The objects of one kind in one namespace ("" for all)."""

    kind: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """An object as it was shown."""

    place: Place
    name: str
    uid: str
    version: int
    """The resourceVersion of the object. Those of one kind are numbers that grow (KEP-5504)."""
    deployment: str
    """The LLMDeployment that its label names."""
    content: bytes

    @classmethod
    def of(cls, resource: Manifest) -> "Sighting":
        meta = resource["metadata"]
        return cls(
            Place(resource["kind"], meta["namespace"]),
            meta["name"],
            meta["uid"],
            int(meta["resourceVersion"]),
            (meta.get("labels") or {}).get(DEPLOYMENT_LABEL, ""),
            orjson.dumps(resource),
        )

    def manifest(self) -> Manifest:
        """The object, a new one with every call."""
        found: Manifest = orjson.loads(self.content)
        return found


@dataclass
class _Known:
    sighting: Sighting
    noted: int
    """When, by the mirror's own count."""
    read: dict[object, object] = field(default_factory=dict)
    """What readers have made of it, by reader."""


@dataclass
class _List:
    began: int
    """By the mirror's own count."""
    uids: set[str]


class Mirror:
    """Written and read by one thread alone.

    `opened(kind, namespace)` says whether the stream of a kind is open, of one namespace or of all
    (""): what happens meanwhile is shown.
    """

    def __init__(self, opened: Callable[[str, str], bool]) -> None:
        self._opened = opened
        self._known: defaultdict[Place, dict[str, _Known]] = defaultdict(dict)
        self._named: defaultdict[tuple[Place, str], dict[str, None]] = defaultdict(dict)
        """Names by the LLMDeployment that their labels name."""
        self._lists: dict[Place, _List] = {}
        """Lists that are being read."""
        self._listed: set[Place] = set()
        self._unsure: defaultdict[Place, dict[str, int]] = defaultdict(dict)
        """Objects that we have deleted, and their versions before."""
        self._graves: dict[tuple[Place, str], int] = {}
        """Objects that are gone, and their last versions, the latest at the end. The answer to a
        write of ours may come after the event that says so."""
        self._count = 0

    def see(self, sighting: Sighting) -> None:
        """Note what an event, a list or the answer to a write showed. What is older than what is
        known is forgotten."""
        known = self._known[sighting.place].get(sighting.name)
        if known is None or known.sighting.version <= sighting.version:
            self._note(sighting)

    def _note(self, sighting: Sighting) -> None:
        place = sighting.place
        if sighting.version <= self._graves.get((place, sighting.name), -1):
            return
        self._graves.pop((place, sighting.name), None)
        self._drop(place, sighting.name)
        self._count += 1
        self._known[place][sighting.name] = _Known(sighting, self._count)
        self._named[place, sighting.deployment][sighting.name] = None
        if sighting.version > self._unsure[place].get(sighting.name, sighting.version):
            del self._unsure[place][sighting.name]

    def lose(self, sighting: Sighting) -> None:
        """Note that an object is gone, or is not watched any more."""
        known = self._known[sighting.place].get(sighting.name)
        if known is None or known.sighting.version <= sighting.version:
            self._bury(sighting)
        self._unsure[sighting.place].pop(sighting.name, None)

    def _bury(self, sighting: Sighting) -> None:
        place = sighting.place
        self._drop(place, sighting.name)
        self._graves.pop((place, sighting.name), None)
        self._graves[place, sighting.name] = sighting.version
        if len(self._graves) > GRAVES:
            del self._graves[next(iter(self._graves))]

    def doubt(self, kind: str, namespace: str, name: str) -> None:
        """Note that we have asked for an object to be deleted: it may be gone or going."""
        place = Place(kind, namespace)
        if known := self._known[place].get(name):
            self._unsure[place][name] = known.sighting.version

    def _drop(self, place: Place, name: str) -> None:
        known = self._known[place].pop(name, None)
        if known is not None:
            named = self._named[place, known.sighting.deployment]
            del named[name]
            if not named:
                del self._named[place, known.sighting.deployment]

    def begin(self, place: Place) -> None:
        """A list of a whole place is being asked for, as a watch does when it begins anew."""
        self._listed.discard(place)
        self._lists[place] = _List(self._count, set())

    def page(self, place: Place, items: Iterable[Sighting], *, last: bool) -> list[Sighting]:
        """Take a page of that list. With the last one, returns what was known and is not there.

        What has been noted since the list began may be newer than it, and stays.
        """
        listed = self._lists.get(place)
        if listed is None:
            return []
        for item in items:
            listed.uids.add(item.uid)
            known = self._known[item.place].get(item.name)
            if known is None or known.noted <= listed.began:
                self._note(item)
            else:
                self.see(item)
        if not last:
            return []
        del self._lists[place]
        self._listed.add(place)
        vanished = [
            known.sighting
            for each in self._places(place)
            for known in self._known[each].values()
            if known.noted <= listed.began and known.sighting.uid not in listed.uids
        ]
        for sighting in vanished:
            self._bury(sighting)
            self._unsure[sighting.place].pop(sighting.name, None)
        return vanished

    def _places(self, place: Place) -> list[Place]:
        if place.namespace:
            return [place]
        return [each for each in self._known if each.kind == place.kind]

    def _tells(self, place: Place) -> bool:
        return any(
            each in self._listed and self._opened(*each) for each in (place, Place(place.kind, ""))
        )

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object; None where it is not known, which need not mean that there is none."""
        place = Place(kind, namespace)
        known = self._known[place].get(name) if self._tells(place) else None
        if known is None or name in self._unsure[place]:
            return None
        return known.sighting.manifest()

    def read(
        self, kind: str, namespace: str, reader: Callable[[Manifest], Read]
    ) -> list[Read] | None:
        """What `reader` makes of each object of a namespace, read once for each of its versions;
        None where that is not known."""
        found = self._select(Place(kind, namespace), None)
        if found is None:
            return None
        for known in found:
            if reader not in known.read:
                known.read[reader] = reader(known.sighting.manifest())
        return [cast("Read", known.read[reader]) for known in found]

    def select(self, kind: str, namespace: str, deployment: str | None) -> list[Manifest] | None:
        """The objects of a namespace ("" for all), of one LLMDeployment where it is named; None
        where that is not known."""
        found = self._select(Place(kind, namespace), deployment)
        return None if found is None else [known.sighting.manifest() for known in found]

    def _select(self, place: Place, deployment: str | None) -> list[_Known] | None:
        if not self._tells(place):
            return None
        found = []
        for each in self._places(place):
            known = self._known[each]
            names = known if deployment is None else self._named.get((each, deployment), {})
            if any(name in self._unsure[each] for name in names):
                return None
            found += [known[name] for name in names]
        return found
