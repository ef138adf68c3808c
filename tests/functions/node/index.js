// The tests' function in Node.js; ../README.md has the protocol.
'use strict';

const {createHash} = require('node:crypto');
const http = require('node:http');

const keepAlive = new http.Agent({keepAlive: true, maxSockets: 64});

const sha256 = bytes => createHash('sha256').update(bytes).digest('hex');

// The body in pieces, which makes either client send it chunked; the first piece is one byte.
function* pieces(body, size = 8192) {
  yield body.subarray(0, 1);
  for (let start = 1; start < body.length; start += size) {
    yield body.subarray(start, start + size);
  }
}

async function byFetch(url, headers, body, chunked) {
  const response = await fetch(url, {
    method: 'POST',
    headers,
    body: chunked ? ReadableStream.from(pieces(body)) : body,
    duplex: chunked ? 'half' : undefined,
  });
  return {status: response.status, header: name => response.headers.get(name), text: await response.text()};
}

function byHttp(url, headers, body, chunked, agent) {
  return new Promise((resolve, reject) => {
    const length = chunked ? {} : {'content-length': body.length};
    const request = http.request(url, {method: 'POST', agent, headers: {...headers, ...length}}, response => {
      const parts = [];
      response.on('data', part => parts.push(part));
      response.on('error', reject);
      response.on('end', () =>
        resolve({
          status: response.statusCode,
          header: name => response.headers[name] ?? null,
          text: Buffer.concat(parts).toString(),
        }),
      );
    });
    request.on('error', reject);
    for (const piece of chunked ? pieces(body) : [body]) {
      request.write(piece);
    }
    request.end();
  });
}

async function call(ownId, index, step, inbound) {
  const id = `${ownId}.${index}`;
  const headers = {'x-true-parent': ownId, ...step.headers};
  for (const name of step.forward ?? []) {
    if (inbound[name] !== undefined) {
      headers[name] = inbound[name];
    }
  }
  let body;
  if (step.body) {
    body = Buffer.alloc(step.body.length, step.body.text);
    headers['content-type'] = 'application/octet-stream';
  } else {
    body = Buffer.from(JSON.stringify(step.plan ?? {}));
    headers['content-type'] = 'application/json';
  }
  const chunked = step.body?.chunked ?? false;
  const url = `${step.url}/${id}`;
  try {
    let response;
    if (step.fresh || step.client === 'http') {
      response = await byHttp(url, headers, body, chunked, step.fresh ? false : keepAlive);
    } else {
      response = await byFetch(url, headers, body, chunked);
    }
    const answer = JSON.parse(response.text);
    answer.sent = sha256(body);
    answer.status = response.status;
    if (response.header('x-via')) {
      answer.via = {
        function: response.header('x-via'),
        traceparent: response.header('x-via-traceparent') || null,
      };
    }
    return answer;
  } catch (error) {
    return {id, error: `${error.message}: ${error.cause?.message ?? error.code ?? ''}`};
  }
}

exports.handle = async (request, response) => {
  const id = request.path.replace(/^\/+/, '');
  const raw = request.rawBody ?? Buffer.alloc(0);
  const plan = request.is('application/json') ? JSON.parse(raw.toString() || '{}') : {};
  const calls = plan.calls ?? [];
  const children = [];
  for (let next = 0; next < calls.length; ) {
    const group = [];
    do {
      group.push(call(id, next, calls[next], request.headers));
      next += 1;
    } while (next < calls.length && calls[next].mode === 'par' && calls[next - 1].mode === 'par');
    children.push(...(await Promise.all(group)));
  }
  response.json({
    id,
    true_parent: request.headers['x-true-parent'] ?? null,
    traceparent: request.headers.traceparent ?? null,
    lang: 'node',
    function: process.env.K_SERVICE ?? null,
    body: {length: raw.length, sha256: sha256(raw)},
    pad: 'x'.repeat(plan.pad ?? 0),
    children,
  });
};
