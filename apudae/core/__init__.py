"""What every room stands on; nothing here knows of attacks or purifiers.

- :mod:`~apudae.core.arguments`: checks of what a caller hands in, and the package's warning
- :mod:`~apudae.core.calling`: asking a model for its logits, always in the same way
- :mod:`~apudae.core.norms`: balls around images, lengths, random draws with keys
- :mod:`~apudae.core.bounds`: what no change of a network's input within a box can exceed
- :mod:`~apudae.core.scores`: accuracies, differences and their intervals
- :mod:`~apudae.core.record`: results that say what made them, and can be gone on with
- :mod:`~apudae.core.processes`: several processes that act as one; half precision
- :mod:`~apudae.core.prints`: what tells data and models apart to the last bit
- :mod:`~apudae.core.files`: fingerprints, checksums, files that are never half written

Rooms above import from these files by name; chapters find what they need in the rooms.
"""
