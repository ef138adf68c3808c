// node:http on both sides, with a keep-alive agent.
'use strict';

const http = require('node:http');
const {callTo, carryOut} = require('./shapes.js');

const agent = new http.Agent({keepAlive: true});

const call = (ownId, {fail = false, fresh = false} = {}) =>
  new Promise((resolve, reject) => {
    const {url, headers} = callTo(ownId, fail);
    http
      .get(url, {agent: fresh ? false : agent, headers}, response => {
        response.resume();
        response.on('error', reject);
        response.on('end', () => resolve(response.statusCode));
      })
      .on('error', reject);
  });

http
  .createServer(async (request, response) => {
    const {pathname, searchParams} = new URL(request.url, 'http://function');
    try {
      await carryOut(pathname.slice(1), searchParams.get('shape'), call, chunk => response.write(chunk));
    } catch (error) {
      response.statusCode = 502;
      console.error(error);
    }
    response.end('done\n');
  })
  .listen(Number(process.env.PORT), process.env.HOST);
