"""The server: OpenAI's image endpoints over HTTP, on pipelines that one worker draws with."""
