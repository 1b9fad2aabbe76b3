"""custom.metrics.k8s.io and external.metrics.k8s.io, from the pods' own metrics, for
HorizontalPodAutoscalers.

An aggregated API as the Kubernetes documentation describes it ("Configure the Aggregation Layer"):
the API server passes requests on over TLS, under the name of who asked. Every replica answers;
which replica leads makes no difference.

catalogue      which metrics there are, and how those of several pods are one
samples        what the pods said, never older than a bound
answers        the documents of both APIs. Pure
front_proxy    who asks, as the API server says
authorization  whether they may, by SubjectAccessReviews
certificates   the certificate authority in a Secret, and what it signs
registration   the APIServices, of which none is taken from somebody else
server         one request
part           starts all that, and keeps it current
"""
