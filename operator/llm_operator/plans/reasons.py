"""Every reason that a condition of this operator can carry.
Reasons are API: people write alerts on them."""

from enum import StrEnum


class Reason(StrEnum):
    """One documented list: docs/reference.md prints `meaning`."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.meaning = meaning
        return reason

    # All is well
    Serving = (
        "Serving",
        "Ready, Available: all wanted pods of the wanted revision are ready behind the Service",
    )
    Resolved = "Resolved", "ModelResolved: the reference stands for a version"
    AdaptersLoaded = (
        "AdaptersLoaded",
        "AdaptersReady: each adapter's version answers in every ready pod",
    )
    Reachable = "Reachable", "RegistryReachable: the registry answered"
    Applied = "Applied", "Applied: all children are as planned"
    RolledOut = "RolledOut", "Progressing: nothing is under way"
    Settled = "Settled", "Reconciling is False: nothing is left to do"
    NoFault = "NoFault", "Stalled is False: nothing is stuck"
    ScalingActive = "ScalingActive", "AutoscalingActive: the autoscaler computes replicas"
    # On the way
    Pending = "Pending", "no operator has looked at it yet; the API server says so"
    Resolving = "Resolving", "the registry has not been asked yet"
    RollingOut = "RollingOut", "a candidate is under way; the message counts its ready pods"
    Downloading = (
        "Downloading",
        "pods bring the model's files; the message says how far the slowest is",
    )
    AdapterLoading = (
        "AdapterLoading",
        "AdaptersReady: ready pods have still to load a version; the message names them",
    )
    AdapterJudged = (
        "AdapterJudged",
        (
            "AdaptersReady: a version of an adapter is behind its gates, and the version before it"
            " answers"
        ),
    )
    Scaling = "Scaling", "pods of the serving revision come or go"
    Retrying = "Retrying", "a passing fault; it is tried again by itself"
    # By wish
    Suspended = "Suspended", "spec.suspend is true: no pods run"
    ScaledToZero = "ScaledToZero", "replicas is 0"
    # updatePolicy Manual
    ApprovalNeeded = (
        "ApprovalNeeded",
        "UpdateAvailable: the reference moved; the message has the command that follows it",
    )
    UpToDate = "UpToDate", "UpdateAvailable is False: the reference stands for the version in use"
    # The registry
    ModelNotFound = (
        "ModelNotFound",
        "no registered model of that name; or, from a pod, its files are not there",
    )
    AliasNotFound = "AliasNotFound", "the model has no such alias"
    VersionNotFound = "VersionNotFound", "the model has no such version, or none in the stage"
    RegistryDenied = (
        "RegistryDenied",
        "the registry answered 401, or 403 to any question: wrong credentials",
    )
    ModelDenied = (
        "ModelDenied",
        "the registry answered 403 on this model: the operator's user has no right to it",
    )
    HostNotAllowed = (
        "HostNotAllowed",
        "MLflow refuses the Host header: its --allowed-hosts lacks the address",
    )
    ConnectionUnknown = "ConnectionUnknown", "the operator's configuration has no such connection"
    ConnectionNotPermitted = (
        "ConnectionNotPermitted",
        (
            "the operator's configuration does not let LLMDeployments of this namespace use the"
            " connection"
        ),
    )
    RegistryUnreachable = (
        "RegistryUnreachable",
        "no answer, or none that makes sense; asked again by itself",
    )
    # Pods
    NoReadyPods = "NoReadyPods", "no pod behind the Service is ready"
    PodUnschedulable = "PodUnschedulable", "no node has room; the message names what is scarce"
    ImagePullFailed = "ImagePullFailed", "the runtime image can't be pulled"
    ContainerConfigError = (
        "ContainerConfigError",
        "a container can't be created, as when a Secret in pod.env is missing",
    )
    CrashLoopBackOff = "CrashLoopBackOff", "a container ends again and again without saying why"
    ContainerRestarted = (
        "ContainerRestarted",
        "a container ended without saying why, and was started again",
    )
    MountFailed = "MountFailed", "a volume can't be mounted"
    AttachFailed = "AttachFailed", "a volume can't be attached to the pod's node"
    SandboxFailed = (
        "SandboxFailed",
        "a pod can't get its sandbox: the node's container runtime or network is at fault",
    )
    PodEvicted = (
        "PodEvicted",
        "a node has ended the pod: short of memory or disk, shutting down, no room on arrival",
    )
    NodeLost = "NodeLost", "the node of a pod does not answer"
    PodsRefused = (
        "PodsRefused",
        "the API server refuses the pods: quota, Pod Security, an admission webhook",
    )
    ProgressDeadlineExceeded = (
        "ProgressDeadlineExceeded",
        "a revision was not ready within its deadline",
    )
    GateFailed = (
        "GateFailed",
        (
            "a gate says that the candidate is wrong or too slow; the message names figure and"
            " threshold"
        ),
    )
    GateInconclusive = (
        "GateInconclusive",
        (
            "a gate was neither surely passed nor surely failed when its time was over"
            " (rollout.onInconclusive)"
        ),
    )
    SmokePromptsUnusable = (
        "SmokePromptsUnusable",
        (
            "the ConfigMap of a smoke gate is missing, or is none of smoke prompts; the roll-out"
            " waits for it"
        ),
    )
    CandidateCrashed = "CandidateCrashed", "a pod of the candidate ended while it had traffic"
    Aborted = "Aborted", "the annotation llm-operator.dev/rollout says abort"
    Paused = "Paused", "the annotation llm-operator.dev/rollout says pause"
    AnnotationIgnored = (
        "AnnotationIgnored",
        "an annotation that steers a roll-out can't be read; the message says what can",
    )
    # A pod's own report (llm_runtime.errors.Fatal)
    ConfigInvalid = "ConfigInvalid", "a pod refused its configuration"
    ModelCorrupt = "ModelCorrupt", "the version's files are not whole; the message names the file"
    ModelUnsupported = (
        "ModelUnsupported",
        "whole files that the runtime does not load: pickle, remote code, architecture",
    )
    DiskFull = (
        "DiskFull",
        "not enough room for the model; the message says how much is needed and free",
    )
    OutOfMemory = "OutOfMemory", "not enough memory for weights and cache, or killed for it"
    EngineKilled = (
        "EngineKilled",
        "the engine's process was killed from outside (SIGKILL); its container starts again",
    )
    EngineDied = (
        "EngineDied",
        "the engine's process ended by a signal or with a status; its container starts again",
    )
    AdapterFailed = (
        "AdapterFailed",
        "AdaptersReady is False: a pod can't load an adapter, for a reason not listed here",
    )
    AdapterRefused = (
        "AdapterRefused",
        (
            "AdaptersReady is False: a version of an adapter failed its gates and answers nobody;"
            " the one before it does"
        ),
    )
    # Children
    NameTaken = "NameTaken", "an object that is not ours has a child's name"
    ApplyFailed = "ApplyFailed", "the API server refused a child; the message has its words"
    ChildInvalid = (
        "ChildInvalid",
        (
            "the API server finds a child invalid (422); tried again when the specification"
            " changes, or by the resync"
        ),
    )
    NotObserved = (
        "NotObserved",
        "the operator could not look at everything it needs; the message says what failed",
    )
    ServiceMonitorMissing = "ServiceMonitorMissing", "asked for, but the cluster has no such CRD"
    GatewayApiMissing = (
        "GatewayApiMissing",
        "canary.httpRoute is written, but the cluster has no HTTPRoute CRD",
    )
    NotPermitted = (
        "NotPermitted",
        "the platform's policy refuses what the pods are asked for; the message names the field",
    )
    SecretReserved = (
        "SecretReserved",
        "a Secret is named that the operator keeps for an LLMDeployment or an ApiKey",
    )
    InvalidSpec = "InvalidSpec", "stored before the CRD knew better"
    RevisionLost = (
        "RevisionLost",
        "the ConfigMap of a revision that is not wanted any more was deleted or changed",
    )
    AutoscalerPending = "AutoscalerPending", "the autoscaler has not reported yet"
    AutoscalersContradict = (
        "AutoscalersContradict",
        "a ScaledObject that is not the operator's scales the same pods: spec.autoscaling waits",
    )
    KedaMissing = (
        "KedaMissing",
        "spec.autoscaling.scaler is KEDA, and the cluster does not know its ScaledObjects",
    )
    # The database
    DatabaseConfigured = "DatabaseConfigured", "UsagePersistent: usage and budgets outlive the pods"
    NoDatabase = (
        "NoDatabase",
        "UsagePersistent is False: usage is in each pod's SQLite and is lost with the pod",
    )
    DatabaseSecretMissing = (
        "DatabaseSecretMissing",
        "a Secret of spec.database, or its key, does not exist: pods start once it does",
    )
    # ApiKeys
    Issued = "Issued", "the Secret holds the key"
    Expired = "Expired", "expiresAt has passed"
    Delivering = (
        "Delivering",
        "pods do not know the key yet as the ApiKey has it; the message says which, and why",
    )
    KeyFileFull = (
        "KeyFileFull",
        "the key file of an LLMDeployment has no room for the key: it is refused there",
    )
    SecretNameTaken = (
        "SecretNameTaken",
        "a Secret of that name is not this ApiKey's; it is not overwritten",
    )
    DeploymentNotFound = "DeploymentNotFound", "a named LLMDeployment does not exist"
    TierUnknown = (
        "TierUnknown",
        "an LLMDeployment has no tier of that name: the key has its default tier's limits there",
    )
