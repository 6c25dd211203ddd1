"""An endpoint in the form of OpenAI's API, on the server of transformers."""
