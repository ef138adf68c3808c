// Answers each request; with UPSTREAM, by what the server there answers.
'use strict';
const http = require('node:http');
const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
const { PORT, UPSTREAM } = process.env;

const answer = (request, response) => response.end('hello from behind\n');
const forward = (request, response) => {
  const call = http.request({ host: '127.0.0.1', port: UPSTREAM, path: request.url, agent }, (reply) => reply.pipe(response));
  call.on('error', () => { response.statusCode = 502; response.end(); });
  call.end();
};
http.createServer(UPSTREAM ? forward : answer).listen(Number(PORT), '127.0.0.1');
