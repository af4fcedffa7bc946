// As sdks.py with openai, for OpenAI's package for Node: node sdk.mjs MODULE BASE_URL KEY TEXTS
const [module, baseURL, apiKey, texts] = process.argv.slice(2);
const { default: OpenAI } = await import(module);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
try {
  const input = JSON.parse(texts);
  const answer = await client.embeddings.create({ input, model: "clip" });
  const numbers = await client.embeddings.create({ input, model: "clip", encoding_format: "float" });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const vectors = answer.data.map((one) => one.embedding);
  const one = (await client.models.retrieve("clip")).id;
  const found = { vectors, numbers: numbers.data.map((one) => one.embedding), tokens: answer.usage.total_tokens, models, one };
  console.log(JSON.stringify(found));
} catch (error) {
  console.log(JSON.stringify({ error: `${error.constructor.name}: ${error.message}` }));
}
