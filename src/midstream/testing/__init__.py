"""Fakes, shipped for users' tests too; each runs through the same contract tests as the real thing."""
