"""The agent's figures for Prometheus: what there is (:mod:`.table`), and who shows it (:mod:`.exporter`)."""
