"""A Ray cluster of a few nodes on this machine: ``python nodes.py N``; tells its address, waits.

It ends when its standard input does.
"""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(int(sys.argv[1])):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    print(started.address, flush=True)
    sys.stdin.read()
    started.shutdown()
