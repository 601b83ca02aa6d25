// Examples of amqplib as it comes. Each takes the broker's URL, asserts what it sees, and closes its connection.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const amqp = require('amqplib');

/** A connection with a channel that ends with `body`, whatever becomes of it. */
async function connected(url, body, create = 'createChannel') {
  const connection = await amqp.connect(url);
  try {
    await body(await connection[create](), connection);
  } finally {
    await connection.close();
  }
}

/** The first `count` deliveries of a queue, each given to `each`. */
function consume(channel, queue, count, each, options = {}) {
  return new Promise((resolve, reject) => {
    const got = [];
    channel
      .consume(
        queue,
        (message) => {
          if (message === null) return reject(new Error('cancelled by the broker'));
          if (got.length === count) return reject(new Error('more than was asked for'));
          got.push(message);
          each(message);
          if (got.length === count) resolve(got);
        },
        options,
      )
      .catch(reject);
  });
}

exports.confirms = (url) =>
  connected(
    url,
    async (channel) => {
      const { queue } = await channel.assertQueue('node.confirms', { durable: true });
      for (let n = 0; n < 500; n++) channel.sendToQueue(queue, Buffer.from(`${n}`), { persistent: true, headers: { n } });
      await channel.waitForConfirms();
      assert.equal((await channel.checkQueue(queue)).messageCount, 500);
      const got = await consume(channel, queue, 500, (message) => channel.ack(message));
      assert.deepEqual(
        got.map((message) => [Number(message.content), message.properties.headers.n]),
        [...Array(500).keys()].map((n) => [n, n]),
      );
      await channel.deleteQueue(queue);
    },
    'createConfirmChannel',
  );

exports.refused = (url) =>
  connected(
    url,
    async (channel) => {
      const { queue } = await channel.assertQueue('', { exclusive: true, maxLength: 1, overflow: 'reject-publish' });
      const publish = () =>
        new Promise((resolve) => channel.sendToQueue(queue, Buffer.from('x'), {}, (error) => resolve(error)));
      assert.equal(await publish(), null);
      assert.match((await publish()).message, /nacked/);
    },
    'createConfirmChannel',
  );

exports.returned = (url) =>
  connected(
    url,
    async (channel) => {
      const back = once(channel, 'return');
      channel.publish('amq.direct', 'nobody', Buffer.from('x'), { mandatory: true, messageId: 'm' });
      const [message] = await back;
      assert.equal(message.fields.replyCode, 312);
      assert.equal(message.properties.messageId, 'm');
      await channel.waitForConfirms();
    },
    'createConfirmChannel',
  );

exports.rpc = (url) =>
  connected(url, async (channel) => {
    const { queue } = await channel.assertQueue('node.rpc', { autoDelete: true });
    await channel.consume(queue, (question) => {
      const { replyTo, correlationId } = question.properties;
      channel.sendToQueue(replyTo, Buffer.concat([question.content, question.content]), { correlationId });
      channel.ack(question);
    });
    const answers = consume(channel, 'amq.rabbitmq.reply-to', 2, () => {}, { noAck: true });
    for (const [text, correlationId] of [['ab', '1'], ['cd', '2']])
      channel.sendToQueue(queue, Buffer.from(text), { correlationId, replyTo: 'amq.rabbitmq.reply-to' });
    const got = (await answers).map((answer) => [answer.properties.correlationId, answer.content.toString()]);
    assert.deepEqual(got, [['1', 'abab'], ['2', 'cdcd']]);
  });

exports.nack = (url) =>
  connected(url, async (channel) => {
    await channel.assertQueue('node.dead', { durable: true });
    const { queue } = await channel.assertQueue('node.nack', { deadLetterExchange: '', deadLetterRoutingKey: 'node.dead' });
    channel.sendToQueue(queue, Buffer.from('x'), { headers: { kept: true } });
    const seen = await consume(channel, queue, 2, (message) => channel.nack(message, false, !message.fields.redelivered));
    assert.deepEqual(seen.map((message) => message.fields.redelivered), [false, true]);
    const [dead] = await consume(channel, 'node.dead', 1, (message) => channel.ack(message));
    const { headers } = dead.properties;
    assert.equal(headers.kept, true);
    assert.equal(headers['x-death'][0].queue, 'node.nack');
    assert.equal(headers['x-death'][0].reason, 'rejected');
    for (const name of ['node.nack', 'node.dead']) await channel.deleteQueue(name);
  });

exports.prefetch = (url) =>
  connected(url, async (channel) => {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    for (let n = 0; n < 10; n++) channel.sendToQueue(queue, Buffer.from(`${n}`));
    await channel.prefetch(3);
    const held = [];
    const { consumerTag } = await channel.consume(queue, (message) => held.push(message));
    // What was asked for later is answered later: no more than three have come by then.
    for (const left of [7, 4, 1]) {
      while (held.length < 3) await new Promise(setImmediate);
      assert.equal((await channel.checkQueue(queue)).messageCount, left);
      assert.equal(held.length, 3);
      channel.ack(held.at(-1), true);
      held.length = 0;
    }
    while (held.length < 1) await new Promise(setImmediate);
    assert.equal(held[0].content.toString(), '9');
    channel.ackAll();
    await channel.cancel(consumerTag);
    assert.equal(await channel.get(queue), false);
  });

exports.errors = (url) =>
  connected(url, async (first, connection) => {
    // An error of a channel is told to it, to what waits for an answer, and to no other channel.
    const told = once(first, 'error');
    await assert.rejects(first.checkQueue('node.nothing'), /404/);
    const [notFound] = await told;
    assert.equal(notFound.code, 404);
    assert.deepEqual([notFound.classId, notFound.methodId], [50, 10]);

    const second = await connection.createChannel();
    await second.assertQueue('node.errors', { durable: true });
    const third = await connection.createChannel();
    const mismatch = once(third, 'error');
    await assert.rejects(third.assertQueue('node.errors', { durable: false }), /406/);
    assert.equal((await mismatch)[0].code, 406);
    assert.match((await mismatch)[0].message, /durable/);

    const fourth = await connection.createChannel();
    const unknown = once(fourth, 'error');
    fourth.ackAll();
    fourth.ack({ fields: { deliveryTag: 77 } });
    assert.equal((await unknown)[0].code, 406);
    await second.deleteQueue('node.errors');
  });

exports.exchanges = (url) =>
  connected(url, async (channel) => {
    await channel.assertExchange('node.in', 'topic', { durable: false, autoDelete: true });
    await channel.assertExchange('node.out', 'headers', { durable: false, autoDelete: true });
    const { queue } = await channel.assertQueue('', { exclusive: true });
    await channel.bindExchange('node.out', 'node.in', 'shop.#');
    await channel.bindQueue(queue, 'node.out', '', { 'x-match': 'all', colour: 'red' });
    channel.publish('node.in', 'shop.7', Buffer.from('blue'), { headers: { colour: 'blue' } });
    channel.publish('node.in', 'shop.7', Buffer.from('red'), { headers: { colour: 'red' } });
    channel.publish('node.in', 'other', Buffer.from('other'), { headers: { colour: 'red' } });
    const [message] = await consume(channel, queue, 1, (taken) => channel.ack(taken));
    assert.equal(message.content.toString(), 'red');
    assert.equal(await channel.get(queue), false);
  });

/** Until the queue is deleted by somebody else, once it said that it consumes. */
exports.cancelled = (url, queue) =>
  connected(url, async (channel) => {
    await channel.assertQueue(queue);
    const told = new Promise((resolve) => {
      channel.consume(queue, resolve).then(() => console.log('consuming'));
    });
    assert.equal(await told, null);
  });

/** Until the broker says goodbye, once it said that it is there. */
exports.goodbye = async (url) => {
  const connection = await amqp.connect(url);
  const closed = once(connection, 'close');
  console.log('connected');
  const [why] = await closed;
  console.log(`closed: ${why}`);
};

/** What its channel is told and its own close cross. */
exports.crossing = (url) =>
  connected(url, async (channel, connection) => {
    channel.on('error', () => {}); // whether it says so is its own affair
    channel.publish('closing.nowhere', 'k', Buffer.from('x'));
    await channel.close();
    const again = await connection.createChannel();
    assert.equal((await again.checkQueue('orders')).messageCount, 0);
  });

/** What its connection is told and its own close cross. */
exports.ending = async (url) => {
  const connection = await amqp.connect(url);
  connection.on('error', (error) => assert.equal(error.code, 540));
  const channel = await connection.createChannel();
  channel.on('error', () => {});
  const refused = channel.consume('orders', () => {}, { noLocal: true });
  for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate); // it is written then, a close at once
  await connection.close();
  await assert.rejects(refused);
};
