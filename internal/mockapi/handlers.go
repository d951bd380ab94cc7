package mockapi

import (
	"fmt"
)

// id returns a new identifier with a prefix.
func (a *API) id(prefix string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprintf("%s_%08x", prefix, a.nextID())
}

func (c *call) servePersonas() {
	c.answerAfterLatency(map[string]any{
		"data": []map[string]any{
			{"id": "persona_1", "name": "Early adopter"},
			{"id": "persona_2", "name": "Careful buyer"},
		},
	})
}

func (c *call) serveGenerations() {
	c.answerAfterLatency(map[string]any{
		"id": c.api.id("gen"), "status": "completed", "output": c.text(),
	})
}

func (c *call) serveFocusGroups() {
	c.answerAfterLatency(map[string]any{
		"id": c.api.id("fg"), "status": "completed", "summary": c.text(),
	})
}

// serveChat holds the call open for its latency. A streamed answer comes as
// "chunk" events and ends with "done", which carries the usage.
func (c *call) serveChat() {
	id := c.api.id("chat")
	if !c.body.Stream {
		c.answerAfterLatency(map[string]any{
			"id": id, "role": "assistant", "content": c.text(),
		})
		return
	}
	s := c.openStream(false)
	s.send("start", map[string]any{"id": id})
	c.pieces(func(piece string) {
		s.send("chunk", map[string]any{"content": piece})
	})
	c.release()
	s.send("done", map[string]any{"id": id, "usage": c.usage()})
}

// serveResponses speaks the OpenAI Responses format.
func (c *call) serveResponses() {
	if c.body.Stream {
		c.streamResponse()
		return
	}
	id, item := c.api.id("resp"), c.api.id("msg")
	c.waitUntil(c.verdict.arrived + c.verdict.latency)
	c.answer(c.response(id, "completed", c.message(item, "completed", c.text())))
}

// streamResponse sends the events of one message, in the order of the OpenAI
// API.
func (c *call) streamResponse() {
	id, item := c.api.id("resp"), c.api.id("msg")
	s := c.openStream(true)
	s.send("response.created", map[string]any{"response": c.response(id, "in_progress", nil)})
	s.send("response.in_progress", map[string]any{"response": c.response(id, "in_progress", nil)})
	s.send("response.output_item.added", map[string]any{
		"output_index": 0, "item": c.message(item, "in_progress", ""),
	})
	at := func(more map[string]any) map[string]any {
		more["item_id"], more["output_index"], more["content_index"] = item, 0, 0
		return more
	}
	s.send("response.content_part.added", at(map[string]any{"part": outputText("")}))
	c.pieces(func(piece string) {
		s.send("response.output_text.delta", at(map[string]any{"delta": piece, "logprobs": []any{}}))
	})
	text := c.text()
	s.send("response.output_text.done", at(map[string]any{"text": text, "logprobs": []any{}}))
	s.send("response.content_part.done", at(map[string]any{"part": outputText(text)}))
	message := c.message(item, "completed", text)
	s.send("response.output_item.done", map[string]any{"output_index": 0, "item": message})
	c.release()
	s.send("response.completed", map[string]any{"response": c.response(id, "completed", message)})
}

// response is the response object. One that is completed has usage, and with
// it its credits are counted.
func (c *call) response(id, status string, message map[string]any) map[string]any {
	model := c.body.Model
	if model == "" {
		model = "mavera-1"
	}
	r := map[string]any{
		"id": id, "object": "response", "status": status, "model": model,
		"created_at": c.api.wall(c.verdict.arrived).Unix(),
		"persona_id": c.body.PersonaID,
		"output":     []any{},
		"error":      nil, "incomplete_details": nil, "instructions": nil, "usage": nil,
		"metadata": map[string]any{}, "parallel_tool_calls": true, "tool_choice": "auto",
		"tools": []any{}, "temperature": 1, "top_p": 1,
	}
	if message != nil {
		// Four bytes to the token, as rules of thumb go.
		in, out := (len(c.body.Input)+3)/4, (len(c.text())+3)/4
		usage := c.usage()
		usage["input_tokens"], usage["output_tokens"], usage["total_tokens"] = in, out, in+out
		usage["input_tokens_details"] = map[string]any{"cached_tokens": 0}
		usage["output_tokens_details"] = map[string]any{"reasoning_tokens": 0}
		r["output"], r["usage"] = []any{message}, usage
	}
	return r
}

func (c *call) message(id, status, text string) map[string]any {
	content := []any{}
	if text != "" {
		content = append(content, outputText(text))
	}
	return map[string]any{
		"id": id, "type": "message", "role": "assistant", "status": status, "content": content,
	}
}

func outputText(text string) map[string]any {
	return map[string]any{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
}
