"""Programs that work inside `deploy_to`, one process each, under the app's uid: started by the keeper, never imported
by another program. What they are asked and answer is in `core.steps`."""
