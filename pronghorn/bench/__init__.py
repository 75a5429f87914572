"""Measuring speed: Pronghorn and its peers on the same checkpoint, beside the limits of the machine.

shapes    random checkpoints in real shapes
limits    what the machine can do: read bandwidth, arithmetic peaks
cost      bytes and operations that a step cannot do without
cells     what is measured, one cell for each row of the report
serve     the process that holds an engine and answers one request a line
ours      Pronghorn behind it
engines   those processes, seen from the bench
peers     where the peers' drivers and environments are
record    what was measured
attribute where the time of a step goes
race      measures: rounds in which the engines take turns
report    tables; picture: the roofline

What drafting gains (`pronghorn bench speculate`) is measured in one process, peers in theirs:

prompts   categories of prompts
answers   who answers them: the engine with a drafter, or a peer
speculate measures: batches in which they take turns
gains     what was measured; gains_report: tables of it
"""
