// Runs one example of a module: node run.js MODULE NAME [ARGUMENT...]. Its rule: an example that is not there, fails,
// or leaves a rejected promise behind ends with a status that is not 0.
'use strict';

const path = require('node:path');

const [file, name, ...rest] = process.argv.slice(2);
const examples = require(path.join(__dirname, file));
if (!Object.hasOwn(examples, name)) throw new Error(`${file} has no example ${name}`);

process.exitCode = 1;
examples[name](...rest).then(
  () => {
    process.exitCode = 0;
  },
  (error) => {
    console.error(error);
    process.exit(1); // connections that it left open would keep the process alive
  },
);
