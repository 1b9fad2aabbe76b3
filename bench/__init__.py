"""The benchmark: our runtime over HTTP beside its peers, in one interleaved run;
`hack/bench --help`.

workload   what is asked                servers   ours and the peers as processes
load       the clients, a process       models    the folders that all of them serve
scenarios  who is measured in turn      report    JSON, page and plots
"""
