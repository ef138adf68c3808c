// functions-framework, with fetch.
'use strict';

const {callTo, carryOut} = require('./shapes.js');

async function call(ownId, {fail = false, fresh = false} = {}) {
  const {url, headers} = callTo(ownId, fail);
  const response = await fetch(url, {headers: fresh ? {...headers, connection: 'close'} : headers});
  await response.text();
  return response.status;
}

exports.handle = (request, response) =>
  carryOut(request.path.slice(1), request.query.shape, call, chunk => response.write(chunk)).then(() => response.end('done\n'));
