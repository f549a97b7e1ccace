"""OpenAPI documents in the styles of public APIs.

`SHOP` is in the style of swagger-petstore (3.0, YAML, shared schemas, OAuth and keys), `PHONE` in that of Twilio's
(forms, names with capitals, basic authentication), `CHAT` in that of FastAPI (3.1, generated ids, nullable members).
"""

from typing import Any

SHOP = """
openapi: 3.0.4
info: {title: Pet shop, version: 1.0.27, description: "made 2024-01-01"}
servers: [{url: "/api/{version}", variables: {version: {default: v3}}}]
paths:
  /pet/{petId}:
    parameters:
      - {name: petId, in: path, required: true, schema: {type: integer, format: int64}}
    get:
      operationId: getPetById
      summary: Find pet by ID.
      parameters:
        - {name: X-Trace-Id, in: header, schema: {type: string}}
        - {name: Accept, in: header, schema: {type: string}}
      responses: {200: {description: ok}}
      security: [{api_key: []}, {petstore_auth: ['read:pets']}]
    post:
      operationId: updatePetWithForm
      parameters:
        - {name: name, in: query, schema: {type: string}}
      requestBody:
        content:
          application/octet-stream: {schema: {type: string, format: binary}}
      responses: {}
  /pet:
    put:
      operationId: updatePet
      requestBody: {$ref: '#/components/requestBodies/Pet'}
      responses: {}
      security: [{petstore_auth: ['write:pets']}]
  /pet/findByTags:
    get:
      operationId: findPetsByTags
      parameters:
        - {name: 'tags[]', in: query, explode: false, schema: {type: array, items: {type: string}}}
        - {name: filter, in: query, style: deepObject, schema: {type: object}}
        - {name: sort, in: query, content: {application/json: {schema: {type: object}}}}
        - {name: session, in: cookie, schema: {type: string}}
      responses: {}
  /pet/{petId}/image:
    post:
      operationId: uploadImage
      requestBody: {required: true, content: {image/png: {schema: {type: string, format: binary}}}}
      responses: {}
  /broken:
    get:
      operationId: broken
      parameters: [{$ref: 'other.yaml#/x'}]
      responses: {}
components:
  requestBodies:
    Pet: {required: true, content: {application/json: {schema: {$ref: '#/components/schemas/Pet'}}}}
  schemas:
    Category: {type: object, properties: {id: {type: integer, readOnly: true}, name: {type: string}}}
    Pet:
      type: object
      required: [name, id]
      properties:
        id: {type: integer, format: int64, readOnly: true}
        name: {type: string, example: doggie}
        category: {$ref: '#/components/schemas/Category'}
        parent: {$ref: '#/components/schemas/Pet'}
        weight: {type: number, minimum: 0, exclusiveMinimum: true}
  securitySchemes:
    petstore_auth: {type: oauth2, flows: {implicit: {authorizationUrl: 'https://x.example', scopes: {}}}}
    api_key: {type: apiKey, name: api_key, in: header}
"""

PHONE: dict[str, Any] = {
    "openapi": "3.0.1",
    "info": {"title": "Phone - Messaging", "version": "1.0.0"},
    "servers": [{"url": "https://messaging.example.com"}],
    "security": [{"accountSid_authToken": []}],
    "paths": {
        "/v1/Services": {
            "servers": [{"url": "https://elsewhere.example.com"}],
            "post": {
                "operationId": "CreateService",
                "requestBody": {
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {
                                "type": "object",
                                "required": ["FriendlyName"],
                                "properties": {
                                    "FriendlyName": {"type": "string"},
                                    "StickySender": {"type": "boolean"},
                                    "MediaUrl": {"type": "array", "items": {"type": "string"}},
                                    "Card": {"type": "object"},
                                },
                            },
                            "encoding": {"Card": {"style": "deepObject", "explode": True}},
                        }
                    },
                    "required": True,
                },
            },
        },
    },
    "components": {"securitySchemes": {"accountSid_authToken": {"type": "http", "scheme": "basic"}}},
}

CHAT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Chat", "version": "0.1.0"},
    "paths": {
        "/items/{item_id}:archive": {
            "post": {
                "summary": "Archive",
                "operationId": "archive_items__item_id__archive_post",
                "parameters": [{"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}},
                },
            }
        },
        "/items": {"get": {"security": [{"HTTPBearer": []}, {}]}, "post": {"operationId": "archive items/item"}},
    },
    "components": {
        "schemas": {
            "Body": {
                "type": "object",
                "properties": {"note": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "n": {"type": "integer"}},
                "required": ["n"],
            }
        },
        "securitySchemes": {"HTTPBearer": {"type": "http", "scheme": "bearer"}},
    },
}
