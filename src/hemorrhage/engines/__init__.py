"""Engines that serve models, each in an environment of its own, driven over a pipe.

``registry`` lists them, ``environment`` installs them, ``client`` talks to one, ``protocol`` says what is sent.
"""
