// Examples of MQTT.js as it comes. Each takes the broker's URL, asserts what it sees, and closes its connections.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { readFileSync } = require('node:fs');
const mqtt = require('mqtt');

const EXPIRY = 600;

/** Options that every example needs; `ca` is a file. */
function options(ca, more = {}) {
  return { protocolVersion: 5, reconnectPeriod: 0, ...(ca ? { ca: readFileSync(ca) } : {}), ...more };
}

/** A client that ends with `body`, whatever becomes of it. */
async function connected(url, ca, body, more = {}) {
  const client = await mqtt.connectAsync(url, options(ca, more), false);
  try {
    await body(client);
  } finally {
    await client.endAsync();
  }
}

/** The first `count` messages that `client` gets from now on: [topic, text, packet]. */
function messages(client, count) {
  return new Promise((resolve) => {
    const got = [];
    const take = (topic, payload, packet) => {
      got.push([topic, payload.toString(), packet]);
      if (got.length < count) return;
      client.off('message', take);
      resolve(got);
    };
    client.on('message', take);
  });
}

exports.levels = (url, ca, version) =>
  connected(
    url,
    ca,
    async (client) => {
      const root = `levels/${version}/${url}`.replace(/[^a-z0-9/]/g, '-');
      for (const qos of [0, 1, 2]) {
        const [granted] = await client.subscribeAsync(`${root}/${qos}/#`, { qos });
        assert.equal(granted.qos, qos);
        for (const sent of [0, 1, 2]) {
          const got = messages(client, 1);
          await client.publishAsync(`${root}/${qos}/${sent}`, `${sent}`, { qos: sent });
          const [[topic, text, packet]] = await got;
          assert.deepEqual([topic, text, packet.qos], [`${root}/${qos}/${sent}`, `${sent}`, Math.min(qos, sent)]);
        }
      }
      await client.publishAsync(`${root}/kept`, 'kept', { qos: 2, retain: true });
      const got = messages(client, 1);
      await client.subscribeAsync(`${root}/kept`, { qos: 2 });
      const [[, text, packet]] = await got;
      assert.deepEqual([text, packet.retain, packet.qos], ['kept', true, 2]);
      await client.publishAsync(`${root}/kept`, '', { qos: 1, retain: true });
      await client.unsubscribeAsync(`${root}/kept`);
    },
    { protocolVersion: Number(version) },
  );

exports.properties = (url, ca) =>
  connected(
    url,
    ca,
    async (client) => {
      await client.subscribeAsync('properties/#', { qos: 2, properties: { subscriptionIdentifier: 7 } });
      const properties = {
        userProperties: { b: ['1', '2'], a: '3' },
        responseTopic: 'answers/here',
        correlationData: Buffer.from([0, 255]),
        contentType: 'text/plain',
        payloadFormatIndicator: true,
        messageExpiryInterval: 60,
      };
      const got = messages(client, 1);
      await client.publishAsync('properties/all', 'x', { qos: 2, properties });
      const [[, , { properties: found }]] = await got;
      assert.deepEqual({ ...found.userProperties }, properties.userProperties);
      assert.deepEqual([...found.correlationData], [0, 255]);
      for (const name of ['responseTopic', 'contentType', 'payloadFormatIndicator', 'messageExpiryInterval'])
        assert.equal(found[name], properties[name]);
      assert.equal(found.subscriptionIdentifier, 7);
      const again = messages(client, 20); // by aliases, both ways
      for (let n = 0; n < 20; n++) await client.publishAsync('properties/alias', `${n}`, { qos: 1 });
      assert.deepEqual(
        (await again).map(([topic, text]) => [topic, text]),
        [...Array(20).keys()].map((n) => ['properties/alias', `${n}`]),
      );
    },
    { properties: { topicAliasMaximum: 16 }, autoUseTopicAlias: true, autoAssignTopicAlias: true },
  );

exports.will = (url, ca) =>
  connected(url, ca, async (watcher) => {
    await watcher.subscribeAsync('js/will', { qos: 1 });
    const got = messages(watcher, 1);
    const will = { topic: 'js/will', payload: Buffer.from('gone'), qos: 1, properties: { userProperties: { a: 'b' } } };
    const client = await mqtt.connectAsync(url, options(ca, { will }), false);
    client.stream.destroy();
    const [[, text, packet]] = await got;
    assert.deepEqual([text, packet.properties.userProperties.a], ['gone', 'b']);
    await client.endAsync(true);
  });

/** A session that outlives connections and daemons. Prints `subscribed`, and ends when `last` has come. */
exports.session = async (url, ca, last) => {
  const more = { clientId: 'js', clean: false, reconnectPeriod: 100, properties: { sessionExpiryInterval: EXPIRY } };
  const client = mqtt.connect(url, options(ca, more));
  client.on('error', (error) => console.log('error:', error.message)); // refused while the daemon is away
  const got = [];
  const done = new Promise((resolve) => {
    client.on('message', (topic, payload) => {
      got.push(payload.toString());
      if (payload.toString() === last) resolve();
    });
  });
  const [first] = await once(client, 'connect');
  assert.equal(first.sessionPresent, false);
  await client.subscribeAsync('js/session', { qos: 2 });
  const present = [];
  client.on('connect', (connack) => present.push(connack.sessionPresent));
  console.log('subscribed');
  await done;
  console.log('got:', got.join(' '));
  assert.ok(present.length && present.every(Boolean), `sessions were there: ${present}`);
  await client.endAsync();
};

/** Is refused with this reason code. */
exports.refused = async (url, ca, username, password, code) => {
  await assert.rejects(mqtt.connectAsync(url, options(ca, { username, password }), false), (error) => {
    assert.equal(error.code, Number(code), error);
    return true;
  });
};

/** As a page of `origin` in a browser; `taken`: whether it gets in. */
exports.origin = async (url, ca, origin, taken) => {
  const more = { wsOptions: { headers: { Origin: origin }, ...(ca ? { ca: readFileSync(ca) } : {}) } };
  const coming = mqtt.connectAsync(url, options(ca, more), false);
  if (taken === 'yes') await (await coming).endAsync();
  else await assert.rejects(coming);
};
