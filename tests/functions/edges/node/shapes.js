// What the Node.js functions of `cargo xtask edges` have in common; ../README.md has the protocol.
'use strict';

const {randomBytes} = require('node:crypto');
const {setTimeout: sleep} = require('node:timers/promises');

exports.callTo = (ownId, fail) => ({
  url: `${process.env.CALLEE}/${randomBytes(8).toString('hex')}`,
  headers: fail ? {'x-true-parent': ownId, 'x-fail': '1'} : {'x-true-parent': ownId},
});

async function times(count, work) {
  for (let i = 0; i < count; i += 1) {
    await work();
  }
}

// Carries a shape out: `call` makes a call and gives its status, `write` sends a chunk of the answer.
exports.carryOut = async (ownId, shape, call, write) => {
  switch (shape) {
    case 'seq':
      return times(3, () => call(ownId));
    case 'par':
      return Promise.all([1, 2, 3, 4].map(() => call(ownId)));
    case 'timer':
      return times(2, async () => {
        await sleep(1 + Math.random() * 9);
        await call(ownId);
      });
    case 'after':
      await call(ownId);
      // Nobody awaits it: the answer goes out.
      sleep(5).then(() => call(ownId));
      return;
    case 'retry':
      if ((await call(ownId, {fail: true})) === 503) {
        await call(ownId);
      }
      return;
    case 'stream':
      return times(3, async () => {
        write('a chunk\n');
        await call(ownId);
      });
    case 'fresh':
      return times(2, () => call(ownId, {fresh: true}));
  }
};
