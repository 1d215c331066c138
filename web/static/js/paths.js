// @ts-check
// Paths of this site. Below a visitor's link (/visitor/TOKEN/) the whole site has a prefix.

const root = document.documentElement.dataset.root ?? "";

/**
 * @param {string} path of this site, such as /api/v1/queue
 */
export const sitePath = (path) => root + path;
