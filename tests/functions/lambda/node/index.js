'use strict';
// The tests' function as a Lambda handler; ../README.md has the events.

async function post(url) {
  const response = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' });
  return response.json();
}

exports.handle = async (event, context) => {
  if (event.sleep) await new Promise((resolve) => setTimeout(resolve, event.sleep * 1000));
  const children = [];
  for (const url of event.calls ?? []) children.push(await post(url));
  if (event.fail) throw new Error('as the event asked');
  if (event.exit) process.exit(3);
  return { invocation_id: context.awsRequestId, pid: process.pid, children };
};
