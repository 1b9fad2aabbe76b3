"""One request of an autoscaler, from who asks to the answer."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from aiohttp import web

from llm_operator.metricsapi import answers
from llm_operator.metricsapi.answers import Answered
from llm_operator.metricsapi.authorization import Authorization
from llm_operator.metricsapi.catalogue import METRICS, ServedMetric
from llm_operator.metricsapi.front_proxy import FrontProxy
from llm_operator.metricsapi.samples import Sample, Samples
from llm_operator.plans.names import DEPLOYMENT_LABEL
from llm_operator.ports.cluster import ApiError, Unavailable
from llm_operator.state import Manifest

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


class Server:
    """Answers what came through `proxy`. `namespaces`: those that the operator watches; empty: all
    of them."""

    def __init__(
        self,
        proxy: FrontProxy,
        samples: Samples,
        authorization: Authorization,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._proxy = proxy
        self._samples = samples
        self._authorization = authorization
        self._namespaces = namespaces

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            await self._admit(request)
            return web.json_response(await self._answer(request.path, request.query))
        except Answered as error:
            return _failed(error)
        except Unavailable as error:
            return _failed(Answered(503, str(error)))
        except ApiError as error:
            # The operator may list pods, so what was refused is the selector or the name.
            return _failed(Answered(400, str(error)))

    async def _admit(self, request: web.Request) -> None:
        user = self._proxy.user(request.get_extra_info("peercert"), request.headers)
        if user is None:
            raise Answered(
                401,
                "only the API server is answered here, by its front-proxy certificate: ask through"
                f" it, as kubectl get --raw '{request.path}' does",
            )
        try:
            why = await self._authorization.refusal(user, request.method, request.path)
        except Unavailable:
            raise
        except ApiError as error:
            raise Answered(
                500,
                f"the operator may not find out whether {user.name} may ask: {error}; bind"
                " ClusterRole system:auth-delegator to its account, as its chart does",
            ) from error
        if why is not None:
            raise Answered(403, f"{user.name} may not {request.method} {request.path}: {why}")
        if request.method != "GET":
            raise Answered(405, f"{request.method} is not served: metrics can only be read (GET)")

    async def _answer(self, path: str, query: Mapping[str, str]) -> Manifest:
        match [part for part in path.split("/") if part]:
            case ["apis"]:
                return answers.groups()
            case ["apis", group] if group in answers.VERSIONS:
                return answers.group(group)
            case ["apis", group, version] if answers.VERSIONS.get(group) == version:
                return answers.resources(group)
            case ["apis", group, version, "namespaces", namespace, *rest] if (
                answers.VERSIONS.get(group) == version
            ):
                self._check(namespace, query)
                selector = query.get("labelSelector", "")
                match group, rest:
                    case answers.CUSTOM, [resource, name, metric]:
                        if name != "*":
                            _check_name(name)
                        found = await self._custom(
                            namespace, resource, name, _metric(metric), selector
                        )
                        return answers.custom(found)
                    case answers.EXTERNAL, [metric]:
                        return answers.external(
                            await self._external(namespace, _metric(metric), selector)
                        )
        raise Answered(404, f"nothing is served at {path}")

    def _check(self, namespace: str, query: Mapping[str, str]) -> None:
        _check_name(namespace)
        if self._namespaces and namespace not in self._namespaces:
            raise Answered(
                404,
                f"namespace {namespace} is not watched by this operator: add it to watchNamespaces"
                " of its chart",
            )
        if query.get("metricLabelSelector"):
            raise Answered(
                400, "metricLabelSelector: these metrics have no labels; leave metric.selector out"
            )

    async def _custom(
        self, namespace: str, resource: str, name: str, metric: ServedMetric, selector: str
    ) -> list[Manifest]:
        if resource == answers.PODS and name == "*":
            return _each(metric, await self._samples.of(namespace, selector))
        if resource == answers.PODS:
            sample = await self._samples.named(namespace, name)
            return _one(_each(metric, [sample] if sample else []), metric, f"pod {name}")
        if resource != answers.DEPLOYMENTS:
            raise Answered(
                404,
                f"{resource} have no metrics here: ask for {answers.PODS} or {answers.DEPLOYMENTS}",
            )
        if name == "*":
            found = await self._samples.cluster.list("LLMDeployment", namespace, selector)
            return [value for each in found for value in await self._together(metric, each)]
        resource_found = await self._samples.cluster.seen("LLMDeployment", namespace, name)
        values = await self._together(metric, resource_found) if resource_found else []
        return _one(values, metric, f"LLMDeployment {name}")

    async def _together(self, metric: ServedMetric, deployment: Manifest) -> list[Manifest]:
        about = deployment["metadata"]
        selector = f"{DEPLOYMENT_LABEL}={about['name']}"
        samples = await self._samples.of(about["namespace"], selector)
        known = _figures(metric, samples)
        if not known:
            return []
        taken = min(sample.taken for sample in samples)
        return [answers.described(metric, deployment, metric.together(known), taken)]

    async def _external(
        self, namespace: str, metric: ServedMetric, selector: str
    ) -> list[Manifest]:
        of = defaultdict[str, list[Sample]](list)
        for sample in await self._samples.of(namespace, selector):
            of[sample.pod["metadata"]["labels"][DEPLOYMENT_LABEL]].append(sample)
        return [
            answers.outside(
                metric,
                {DEPLOYMENT_LABEL: name},
                metric.together(known),
                min(sample.taken for sample in samples),
            )
            for name, samples in sorted(of.items())
            if (known := _figures(metric, samples))
        ]


def _check_name(name: str) -> None:
    """Refuse what would ask the API server for something else, such as a name with "?"."""
    if not _NAME.fullmatch(name):
        raise Answered(400, f"{name!r} is no name of an object in Kubernetes")


def _metric(name: str) -> ServedMetric:
    if name not in METRICS:
        raise Answered(404, f"there is no metric {name!r}: ask for one of {', '.join(METRICS)}")
    return METRICS[name]


def _each(metric: ServedMetric, samples: Iterable[Sample]) -> list[Manifest]:
    """One value for each pod that answered."""
    return [
        answers.described(metric, sample.pod, metric.of(sample.load), sample.taken)
        for sample in samples
        if sample.load is not None
    ]


def _figures(metric: ServedMetric, samples: Iterable[Sample]) -> list[float]:
    """The figures of all pods, or none: a sum that lacks a pod would have pods stopped that are
    needed."""
    loads = [sample.load for sample in samples]
    known = [metric.of(load) for load in loads if load is not None]
    return known if len(known) == len(loads) else []


def _one(values: list[Manifest], metric: ServedMetric, what: str) -> list[Manifest]:
    if not values:
        raise Answered(
            404,
            f"{metric.name} of {what} is not known: there is no such object, none of its pods is"
            " ready, or one of them does not answer",
        )
    return values


def _failed(error: Answered) -> web.Response:
    return web.json_response(error.status(), status=error.code)
