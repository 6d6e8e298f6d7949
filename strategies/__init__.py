"""The isolation strategies and the orchestrator that picks among them."""
