"""Shadow traffic: stable pods copy requests to a candidate behind their clients' backs,
and compare the answers. The candidate is another revision, or a version of an adapter in the same
pod.

orders     the mounted files that say who copies to whom, and this pod's part in it
copies     sends copies and drops them before they would cost a client anything
exchange   one request over HTTP
agreement  what two answers to one request have in common; pure
tally      what is counted of that, for the operator
"""

from llm_runtime.shadow.copies import Copier, Heard
from llm_runtime.shadow.orders import Orders
from llm_runtime.shadow.tally import Tally

__all__ = ["Copier", "Heard", "Orders", "Tally"]
