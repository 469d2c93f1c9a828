"""What the promises cost and what they are worth, measured on this machine: ``expedited bench gate`` and ``bench strike``.

Each module has ``run(options, progress)``, which gives a frozen result with ``to_json()``, and ``rows(result)`` for a table.
Nothing is asserted here: a result says what was measured, and how busy the machine was meanwhile.
"""
