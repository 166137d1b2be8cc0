//! A two-node mesh on one machine: network namespaces, wires, rules, a node agent and real adit processes.
