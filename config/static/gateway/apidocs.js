// The page of the management API: Swagger UI over our own document. What is typed into it stays in this page.
const place = document.getElementById("swagger-ui");
SwaggerUIBundle({
  url: place.dataset.document,
  domNode: place,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  defaultModelsExpandDepth: 0, // the calls first; what they are made of on a click
  displayRequestDuration: true,
  persistAuthorization: false,
  validatorUrl: null, // otherwise it would send the document's address to somebody else's server
});
