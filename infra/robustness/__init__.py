"""What happens when things go wrong: load, faults and bad input, counted.

    python -m infra.robustness all --out runs/robustness       # everything; about an hour on two CPU cores
    python -m infra.robustness faults --kills 6 --out DIR      # one part, smaller
    python -m infra.robustness table --out runs/robustness     # writes the counts into infra/docs/robustness.md

Every trial is a line of ``faults.jsonl`` in the folder; what is there is not done again, so that a long run can be cut
into slices. A trial is good if it ended with the same result as without the fault, or with an error that has a name.
"""
