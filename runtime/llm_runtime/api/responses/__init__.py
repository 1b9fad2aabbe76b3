"""OpenAI's newer dialect, the Responses API: items instead of messages, and answers that the
server keeps."""
