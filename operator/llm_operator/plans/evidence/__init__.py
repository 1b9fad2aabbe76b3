"""The gates of a candidate: sequential tests, valid at every look, and the other checks. Pure.

gates   the verdict of each gate, from all that follows
odds    evidence that a share is too large, or too small, and intervals for it
clumps  how much less samples say that come in clumps
trials  two questions of the gates: too many errors? too slow?
means   two more: more tokens, or more memory, than so many times stable's?
buckets samples counted by bucket, as a histogram has them
watched all trials of one candidate, fed with what its pods say of themselves
copies  the same for copies of requests, before there is traffic
loadprobe  the same load on both, before there is traffic

How it works. A gate's question is whether a count is larger than its fair share. Its evidence is a
likelihood ratio, averaged over several sizes of the difference: a non-negative supermartingale
while nothing is wrong. By Ville's inequality it ever reaches 1 / a in at most a share `a` of all
roll-outs, whatever the number of looks (Robbins 1970; Johari, Pekelis, Walsh 2017, mixture SPRT;
Howard, Ramdas, McAuliffe, Sekhon 2021, confidence sequences; Waudby-Smith, Ramdas 2024, betting).
Inverting the test gives an interval that holds at all looks at once.

The order of requests between two looks is unknown: each look enters by its counts alone. Candidate
and stable are compared within each look: how many of its bad requests are the candidate's? So what
happens to both sides at once has no effect, nor has a changed share of the traffic. Given the
number of bad requests, the candidate's are hypergeometric. A binomial's generating function is
never below that (Hoeffding 1963, theorem 4), so the binomial ratio stays a supermartingale.

Latency is compared as a share, too: "the candidate's 95th percentile is at most r times stable's"
says that no more of the candidate's requests take longer than r·t than of stable's take longer than
t, at stable's 95th percentile t (Howard, Ramdas 2022, quantiles as shares). t comes from what
stable did before the look.
"""

from llm_operator.plans.evidence.buckets import Buckets
from llm_operator.plans.evidence.means import MeanTrial, MemoryTrial
from llm_operator.plans.evidence.trials import Answer, Counts, ErrorTrial, LatencyTrial, Rules

__all__ = [
    "Answer",
    "Buckets",
    "Counts",
    "ErrorTrial",
    "LatencyTrial",
    "MeanTrial",
    "MemoryTrial",
    "Rules",
]
