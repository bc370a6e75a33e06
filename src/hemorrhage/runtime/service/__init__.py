"""Jobs without start-up: one process imports the libraries once and forks a child for each job.

``server`` lives as long as the Snakemake run that started it, ``client`` is what a rule's shell line calls, ``job`` is
what both end in. Where no server answers, or another one than the job needs, the client runs the step itself, so that
no result depends on the service.

A ``service`` rule of Snakemake can't hold the server: every job that needs one joins a single group with it, whose
threads are added up and whose jobs begin at the same time (9.27, dag.py, handle_pipes_and_services).
"""
